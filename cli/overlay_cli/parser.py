"""The grammar of the command line. Imports nothing that a verb needs, so that each starts fast."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn, TypeAlias

from overlay.errors import MalformedError
from overlay.peer.bucket import check_rate

TRANSPORTS = ("tor", "i2p", "tcp")
I2P_ROUTERS = (8, 32)
MAX_RELAYS = 32
"""Relays of a private Tor network; each is a process of about 20 MiB."""
MAX_DISK_BYTES = 1 << 40
"""What `overlay.peer.storage.MAX_QUOTA` is; that module takes a database to import."""
_UNITS = "KMGT"

_Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # noqa: SLF001 - argparse has no public name for it


class Parser(argparse.ArgumentParser):
    """Raises what the user got wrong instead of printing it and leaving."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Tell of a wrong use.

        Raises:
            MalformedError: always.
        """
        raise MalformedError(f"{message}: see '{self.prog} --help'")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; `run` of the result names the function of the verb as `module:function`.

    Raises:
        MalformedError: a wrong use.
        SystemExit: --help was printed.
    """
    found, unknown = make_parser().parse_known_args(arguments)
    if unknown:  # argparse would name the help of all commands
        raise MalformedError(f"unrecognized arguments: {' '.join(unknown)}: see '{found.prog} --help'")
    return found


def make_parser() -> Parser:
    """The whole grammar."""
    common = _common_options()
    parser = Parser(
        prog="overlay",
        parents=[_common_options()],  # of its own, because `set_defaults` changes the options themselves
        description="Peer-to-peer applications whose nodes do not reveal where they are.",
        epilog="Exit codes: 0 done, 1 failure, 2 wrong use, 3 no node running, 4 transport unavailable, "
        "5 unreachable or timed out, 6 refused, 7 not found, 8 verification failed.",
    )
    parser.set_defaults(home=None, json=False, quiet=False, verbose=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_node_commands(commands, common)
    _add_chat_commands(_add(commands, common, "chat", "create, join and use chat sessions"), common)
    _add_file_commands(_add(commands, common, "file", "offer files, and fetch what others offer"), common)
    _add_testnet_commands(_add(commands, common, "testnet", "private networks to try things on"), common)
    return parser


def _common_options() -> Parser:
    # Given before or after the command: without a value of their own, they leave what came before alone.
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--home", metavar="DIR", help="the node's folder (else OVERLAY_HOME)")
    common.add_argument("--json", action="store_true", help="print one JSON object a line")
    common.add_argument("--quiet", action="store_true", help="print nothing but data and errors")
    common.add_argument("--verbose", action="store_true", help="log more, and show tracebacks")
    return common


def _add(commands: _Commands, common: Parser, name: str, text: str, run: str = "") -> Parser:
    command = commands.add_parser(name, help=text, description=text, parents=[common])
    command.set_defaults(run=run, prog=command.prog)
    return command


def _add_node_commands(commands: _Commands, common: Parser) -> None:
    init = _add(commands, common, "init", "make a home: identity, configuration, database", "homes:init")
    init.add_argument("--name", default="", help="how you are called in a chat")
    _add_up_options(_add(commands, common, "up", "run the node until it is told to end", "daemon:up"))
    status = _add(commands, common, "status", "show how the running node stands", "node:status")
    status.add_argument(
        "--wait", type=_seconds, metavar="SECONDS", help="wait until the node is ready, this long at most"
    )
    _add(
        commands,
        common,
        "ticket",
        "print a token that lets another node join through this one",
        "node:ticket",
    )
    _add(commands, common, "peers", "list the nodes that this one knows", "node:peers")
    _add(commands, common, "id", "print this node's identifier", "homes:identifier")
    _add(commands, common, "down", "end the running node, and wait until it has ended", "node:down")
    doctor = _add(commands, common, "doctor", "look for what keeps a node from working", "doctor:doctor")
    doctor.add_argument(
        "--transport",
        action="append",
        choices=TRANSPORTS,
        help="where no node runs, look at this one and not at config.toml's; may be given several times",
    )
    _add(commands, common, "version", "print the version", "version:version")


def _add_up_options(up: Parser) -> None:
    up.add_argument("--transport", action="append", choices=TRANSPORTS, help="may be given several times")
    up.add_argument("--directory", action="store_true", help="be a directory for others (remembered)")
    up.add_argument("--join", metavar="TICKET", help="register at the ticket's directory (remembered)")
    up.add_argument("--torrc", metavar="FILE", help="lines to add to the configuration of the node's own tor")
    up.add_argument("--tor-control", metavar="ADDR", help="use the tor with this control port or socket")
    up.add_argument("--sam", metavar="HOST:PORT", help="use the I2P router whose SAM bridge listens there")
    up.add_argument("--i2pd", metavar="PATH", help="the program to launch as the node's own I2P router")
    up.add_argument(
        "--i2p-config", metavar="FILE", help="lines to add to the configuration of the node's own router"
    )
    up.add_argument("--listen", metavar="HOST:PORT", help="where tcp listens")


def _add_chat_commands(chat: Parser, common: Parser) -> None:
    commands = chat.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, text: str, *arguments: str) -> Parser:
        command = _add(commands, common, name, text, f"chat:{name}")
        for argument in arguments:
            command.add_argument(argument.lower(), metavar=argument)
        return command

    add("create", "create a session, and print its invite", "TITLE").add_argument(
        "--as", dest="name", metavar="NAME", help="how you are called in it"
    )
    add("list", "list the sessions")
    add("invite", "print a token that lets somebody join", "SESSION")
    add("join", "join a session", "INVITE").add_argument(
        "--as", dest="name", metavar="NAME", help="how you are called in it"
    )
    add("people", "list who takes part", "SESSION")
    add("leave", "leave a session", "SESSION")
    add("send", "send a message; - reads it from stdin", "SESSION", "TEXT")
    read = add("read", "print messages", "SESSION")
    read.add_argument("--last", type=_count, metavar="N", help="only the last N (50)")
    read.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    add("post", "post a file", "SESSION", "PATH")
    add("files", "list the posted files", "SESSION")
    add("get", "fetch a posted file", "SESSION", "FILE").add_argument(
        "-o", dest="path", metavar="PATH", help="a new file, or a folder (else: here, under its own name)"
    )


def _add_file_commands(file: Parser, common: Parser) -> None:
    commands = file.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    share = _add(
        commands,
        common,
        "share",
        "offer a file or a folder from where it lies, and print its link",
        "file:share",
    )
    share.add_argument("path", metavar="PATH")
    share.add_argument("--name", metavar="NAME", help="what it is called (else as it is)")
    share.add_argument("--qr", action="store_true", help="show the link as a QR code too")
    put = _add(commands, common, "put", "store a file at other nodes, and print its link", "file:put")
    put.add_argument("path", metavar="PATH", help="a file; - reads it from stdin")
    put.add_argument("--name", metavar="NAME", help="what it is called (else as the file)")
    put.add_argument("--qr", action="store_true", help="show the link as a QR code too")
    for command in (share, put):
        command.add_argument(
            "--convergent",
            action="store_true",
            help="the same file gives the same urn:eris: everywhere; who has it can tell that you do",
        )
    _add_get_command(commands, common)
    _add_pin_commands(commands, common)
    _add(commands, common, "list", "list what this node offers, and what it has pinned", "file:list")
    remove = _add(commands, common, "remove", "offer something no more; the file stays", "file:remove")
    remove.add_argument("link", metavar="LINK", help="as it was printed; - reads it from stdin")
    info = _add(commands, common, "info", "show what a link says; no node is needed", "file_info:info")
    info.add_argument("link", metavar="LINK", help="as it was printed; - reads it from stdin")
    status = _add(commands, common, "status", "show what is being fetched and put", "file:status")
    status.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    _add_limit_command(commands, common)


def _add_get_command(commands: _Commands, common: Parser) -> None:
    get = _add(
        commands,
        common,
        "get",
        "fetch a file or a folder; goes on where an earlier attempt ended",
        "file:get",
    )
    get.add_argument("link", metavar="LINK", help="as it was printed; - reads it from stdin")
    get.add_argument(
        "-o",
        dest="path",
        metavar="PATH",
        help="a file, or a folder (else: here, under its own name); - for stdout",
    )
    get.add_argument("--force", action="store_true", help="replace files that are there")
    get.add_argument("--rate", type=_limit, metavar="BYTES", help="how many may come a second, or 'none'")
    get.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="of a folder, only what is called so; may be given several times",
    )


def _add_pin_commands(commands: _Commands, common: Parser) -> None:
    for name, text in (
        ("pin", "fetch a file or a folder into this node's own storage, keep it and offer it"),
        ("unpin", "keep it no more"),
    ):
        command = _add(commands, common, name, text, f"file:{name}")
        command.add_argument("link", metavar="LINK", help="as it was printed; - reads it from stdin")


def _add_limit_command(commands: _Commands, common: Parser) -> None:
    limit = _add(
        commands,
        common,
        "limit",
        "show and change how fast the node, or one fetch, may be, and how much the node stores",
        "file:limit",
    )
    limit.add_argument("path", metavar="PATH", nargs="?", help="only the fetch to this file")
    limit.add_argument("--up", type=_limit, metavar="BYTES", help="how many may go a second, or 'none'")
    limit.add_argument("--down", type=_limit, metavar="BYTES", help="how many may come a second, or 'none'")
    limit.add_argument(
        "--disk", type=_size, metavar="SIZE", help="how much is stored at most: bytes, or as in 500M, 20G"
    )


def _add_testnet_commands(testnet: Parser, common: Parser) -> None:
    commands = testnet.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    tor = _add(commands, common, "tor", "run a private Tor network until Ctrl-C", "testnet_tor:tor")
    tor.add_argument("--dir", metavar="DIR", help="a folder for it (else a temporary one)")
    tor.add_argument("--relays", type=_relays, default=3, metavar="N", help="how many relays (3)")
    tor.add_argument(
        "--link-delay",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="how long bytes are on each link (0)",
    )
    tor.add_argument(
        "--link-rate", type=_rate, metavar="BYTES", help="how many it takes a second (any number)"
    )
    i2p = _add(commands, common, "i2p", "run a private I2P network until Ctrl-C (Linux)", "testnet_i2p:i2p")
    i2p.add_argument("--dir", metavar="DIR", help="a folder for it (else a temporary one)")
    i2p.add_argument("--routers", type=_routers, default=8, metavar="N", help="how many routers (8)")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if not 0 <= count < 1 << 31:
        raise ValueError(text)
    return count


def _rate(text: str) -> int:
    rate = int(text)
    if rate <= 0:
        raise argparse.ArgumentTypeError("a rate is a number of bytes a second, above 0")
    return rate


def _limited_rate(text: str) -> int:
    try:
        return check_rate(_bytes(text))
    except MalformedError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _limit(text: str) -> int:
    """Read a limit; 0 stands for none, which nobody can give."""
    return 0 if text == "none" else _limited_rate(text)


def _bytes(text: str) -> int:
    """Read a number of bytes, or of units of 1024, 1024^2 and so on.

    Raises:
        ArgumentTypeError: it is none.
    """
    exponent = _UNITS.find(text[-1].upper()) + 1 if text else 0
    try:
        return int(text[:-1] if exponent else text) << 10 * exponent
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no whole number of bytes, which K, M, G or T may follow"
        ) from error


def _size(text: str) -> int:
    size = _bytes(text)
    if not 0 <= size <= MAX_DISK_BYTES:
        raise argparse.ArgumentTypeError(f"a limit of the disk is 0 to {MAX_DISK_BYTES} bytes (1024G)")
    return size


def _relays(text: str) -> int:
    relays = int(text)
    if not 3 <= relays <= MAX_RELAYS:
        raise argparse.ArgumentTypeError(f"a private Tor network has 3 to {MAX_RELAYS} relays")
    return relays


def _routers(text: str) -> int:
    routers, (least, most) = int(text), I2P_ROUTERS
    if not least <= routers <= most:
        raise argparse.ArgumentTypeError(f"a private I2P network has {least} to {most} routers")
    return routers


_seconds.__name__ = "number of seconds"  # argparse puts these into its sentence
_count.__name__ = "count"
_rate.__name__ = _limited_rate.__name__ = _limit.__name__ = "rate in bytes a second"
_size.__name__ = "number of bytes"
_relays.__name__ = "number of relays"
_routers.__name__ = "number of routers"
