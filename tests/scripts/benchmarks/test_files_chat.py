from __future__ import annotations

import anyio
import pytest

from overlay.testing.programs import MakeHome
from scripts.benchmarks import files_chat
from scripts.benchmarks.files_chat import ECHO, FETCHING, SERVING, figures, measure, percentile, talking


def test_the_percentile_is_what_95_of_100_do_not_exceed() -> None:
    samples = [float(number) for number in range(1, 101)]
    assert sum(sample <= percentile(samples) for sample in samples) == 95


def test_each_role_is_compared_with_itself_when_idle() -> None:
    idle = {FETCHING: [100.0, 100.0], SERVING: [200.0, 200.0], ECHO: [50.0, 50.0]}
    busy = {FETCHING: [150.0, 150.0], SERVING: [500.0, 500.0], ECHO: [60.0, 60.0]}
    fetching, serving = figures(idle, busy, [4.0])
    assert (fetching.name, fetching.value, fetching.reached) == ("files-chat-fetching", 1.5, True)
    assert (serving.name, serving.value, serving.reached) == ("files-chat-serving", 2.5, False)
    assert "p50 and p95 500 and 500 ms, idle 200 and 200 ms; a raw echo 1.20 x" in serving.what


async def test_what_is_on_its_way_in_the_end_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_chat, "PAUSES", (0.0, 0.0))
    ended, samples = anyio.Event(), dict[str, list[float]]()

    async def send() -> float:
        if len(samples["way"]) == 3:
            ended.set()
        return 1.0

    await measure({"way": send}, samples, lambda _: not ended.is_set())
    assert samples == {"way": [1.0] * 3}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_messages_go_both_ways_between_real_nodes(
    make_home: MakeHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_chat, "PAUSES", (0.0, 0.0))
    server, getter = make_home("ann"), make_home("bob")
    server.up("--directory")
    getter.up("--join", server.one("ticket")["ticket"])
    with talking(server, getter) as ways:
        samples = dict[str, list[float]]()
        await measure(ways, samples, lambda count: count < 2)
    assert samples.keys() == {FETCHING, SERVING}
    assert all(times and min(times) > 0 for times in samples.values())
