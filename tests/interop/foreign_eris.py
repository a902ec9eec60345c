"""Runs the ERIS implementation of other people, `eris` of PyPI, in a process of its own.

foreign_eris.py encode BLOCK SECRET FOLDER    content on stdin; a file for each chunk, and the URN on stdout
foreign_eris.py decode URN FOLDER             the content on stdout
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import eris


async def encode(content: bytes, block: int, secret: bytes) -> tuple[str, dict[bytes, bytes]]:
    """Encode content; gives its URN, and the chunks by their references."""
    store = eris.DictStore()
    encoder = eris.Encoder(secret, store, block_size=block)
    await encoder.write(content)
    return str(await encoder.close()), store.dict


async def decode(urn: str, chunks: dict[bytes, bytes]) -> bytes:
    """Read content from its chunks."""
    store = eris.DictStore()
    store.dict = chunks
    content: bytes = await eris.Decoder(store, eris.ReadCapability(urn)).readall()
    return content


def main(verb: str, *words: str) -> None:
    """Do what the command line says."""
    folder = Path(words[-1])
    if verb == "encode":
        block, secret = int(words[0]), bytes.fromhex(words[1])
        urn, chunks = asyncio.run(encode(sys.stdin.buffer.read(), block, secret))
        for reference, chunk in chunks.items():
            (folder / bytes(reference).hex()).write_bytes(chunk)
        sys.stdout.write(urn)
    else:
        chunks = {bytes.fromhex(path.name): path.read_bytes() for path in folder.iterdir()}
        sys.stdout.buffer.write(asyncio.run(decode(words[0], chunks)))


if __name__ == "__main__":
    main(*sys.argv[1:])
