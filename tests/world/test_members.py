"""Who gets into a world, and what is heard of its end."""

from __future__ import annotations

import dataclasses
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.world.errors import WorldLost
from jaxsgl.world.follower import join
from jaxsgl.world.members import OWN_SETTINGS, Members, settings_apart
from jaxsgl.world.orders import (
    Broken,
    Challenge,
    Join,
    Order,
    Reset,
    Stop,
    Welcome,
    order_decoder,
)
from jaxsgl.world.wire import Wire, WireClosed, proof_of, read_key, world_address
from tests.world.gathering import gathered, world_config


def as_rank(rank: int, config: EngineConfig, **settings) -> EngineConfig:
    return dataclasses.replace(config, node_rank=rank, **settings)


def connect(config: EngineConfig) -> Wire[Order]:
    """To a leader that may not listen yet."""
    assert config.dist_init_addr is not None
    while True:
        try:
            sock = socket.create_connection(world_address(config.dist_init_addr))
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return Wire(sock, order_decoder)


def show_key(wire: Wire[Order], config: EngineConfig, rank: int) -> None:
    challenge = wire.receive()
    assert isinstance(challenge, Challenge) and config.world_key_file is not None
    proof = proof_of(read_key(config.world_key_file), challenge.nonce, rank)
    wire.send(Join(rank, proof, config))


def test_all_are_told_where_to_meet(tmp_path: Path):
    config = world_config(tmp_path, nnodes=3)
    world = gathered(config, [as_rank(2, config), as_rank(1, config, model_path="/elsewhere")])
    (coordinator,) = world.coordinators
    assert coordinator.startswith("127.0.0.1:") and coordinator != config.dist_init_addr
    world.members.tell(Reset())
    assert [wire.receive() for wire in world.wires] == [Reset(), Reset()]
    world.close()
    assert world.losses == []


def test_others_than_members_are_not_let_in(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = world_config(tmp_path)
    (tmp_path / "other").mkdir()
    other_key = tmp_path / "other" / "key"
    other_key.write_text("another secret of 16 or more")
    with ThreadPoolExecutor(1) as threads, caplog.at_level(logging.INFO):
        members = Members(config, pytest.fail)
        leading = threads.submit(members.gather)
        # One who does not know the key, however long what it sends is.
        for proof in ("", "é", proof_of(read_key(str(other_key)), "nonce", 1), "x" * 20_000):
            wire = connect(config)
            assert isinstance(wire.receive(), Challenge)
            with pytest.raises(WireClosed):
                wire.send(Join(1, proof, config))
                wire.receive()
            wire.close()
        # One who sends something else.
        wire = connect(config)
        wire.receive()
        with pytest.raises(WireClosed):
            wire.send(Broken("nonsense"))
            wire.receive()
        wire.close()
        # Those who know it, but do not belong here.
        with pytest.raises(ConfigError, match="--node-rank 2 is none of the 2"):
            join(as_rank(2, config))
        with pytest.raises(ConfigError, match="--mesh is 'tp=4' here and None at the process of"):
            join(as_rank(1, config, mesh="tp=4"))
        assert not leading.done()
        wire, _ = join(as_rank(1, config))
        leading.result()
    members.stop(Stop())
    wire.close()
    assert "does not know the key" in caplog.text
    assert "too large" in caplog.text


def test_a_process_that_comes_again_takes_its_own_place(tmp_path: Path):
    config = world_config(tmp_path, nnodes=3)
    losses: list[WorldLost] = []
    with ThreadPoolExecutor(2) as threads:
        members = Members(config, losses.append)
        leading = threads.submit(members.gather)
        former = connect(config)
        show_key(former, config, 1)
        again = connect(config)
        show_key(again, config, 1)
        with pytest.raises(WireClosed):
            former.receive()
        last, _ = join(as_rank(2, config))
        assert isinstance(again.receive(), Welcome)
        leading.result()
    members.stop(Stop())
    assert losses == []
    for wire in (former, again, last):
        wire.close()


def test_the_first_loss_is_the_one_that_counts(tmp_path: Path):
    config = world_config(tmp_path)
    world = gathered(config, [as_rank(1, config)])
    assert not world.members.is_lost
    world.wires[0].close()
    world.wait_for_loss()
    assert world.members.is_lost
    with pytest.raises(WorldLost, match="rank 1 is gone"):
        world.members.answers(0)
    assert world.members.lose("something else", by_itself=True) is world.losses[0]
    assert [loss.by_itself for loss in world.losses] == [False]
    world.close()


def test_a_follower_says_what_it_ends_of(tmp_path: Path):
    config = world_config(tmp_path)
    world = gathered(config, [as_rank(1, config)])
    world.wires[0].send(Broken("no such file"))
    world.wait_for_loss()
    assert [str(loss) for loss in world.losses] == ["rank 1: no such file"]
    assert world.losses[0].by_itself
    world.close()


def test_what_must_be_the_same():
    config = EngineConfig()
    assert settings_apart(config, config) is None
    for field in dataclasses.fields(EngineConfig):
        other = dataclasses.replace(config, **{field.name: object()})
        assert (settings_apart(config, other) is None) == (field.name in OWN_SETTINGS)


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:0", "host:65536", "host:x"])
def test_no_address(text: str):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        world_address(text)


def test_addresses():
    assert world_address("node-1:5000") == ("node-1", 5000)
    assert world_address("[::1]:5000") == ("::1", 5000)


def test_keys(tmp_path: Path):
    with pytest.raises(ConfigError, match="no-file: No such file"):
        read_key(str(tmp_path / "no-file"))
    (tmp_path / "short").write_text("short")
    with pytest.raises(ConfigError, match="less than 16"):
        read_key(str(tmp_path / "short"))


def test_an_address_that_is_taken(tmp_path: Path):
    config = world_config(tmp_path)
    assert config.dist_init_addr is not None
    with socket.create_server(world_address(config.dist_init_addr)):
        with pytest.raises(ConfigError, match=r"--dist-init-addr .*in use"):
            Members(config, pytest.fail).gather()
