import asyncio
import threading

import pytest

from jaxsgl.actors.service import ServiceDead
from jaxsgl.actors.text_actor import LONG, TextActor, encode_prompt
from jaxsgl.interface import ChatPrompt, InvalidRequest, TextPrompt, TokenPrompt
from tests.actors.cancelling import cancel_at_every_await
from tests.actors.fake_tokenizer import ByteTokenizer
from tests.actors.waiting import until


@pytest.fixture
async def text():
    actor = TextActor(ByteTokenizer())
    await actor.start()
    yield actor
    await actor.stop(1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_three_kinds_of_prompt(text):
    assert await text.encode(TextPrompt("hé")) == list("hé".encode())
    assert await text.encode(TokenPrompt([0, 255, 3])) == [0, 255, 3]
    messages = [{"role": "user", "content": "hi"}]
    assert await text.encode(ChatPrompt(messages)) == list(b"user:hi\nassistant:")
    assert await text.encode(ChatPrompt(messages, False)) == list(b"user:hi\n")


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (TextPrompt(""), "prompt"),
        (TextPrompt("\ud800"), "prompt"),
        (TokenPrompt([]), "prompt"),
        (TokenPrompt([-1]), "prompt"),
        (TokenPrompt([1, 256]), "prompt"),
        (TokenPrompt([True]), "prompt"),
        (TokenPrompt([2**40]), "prompt"),
        (TokenPrompt([1.0]), "prompt"),  # pyright: ignore[reportArgumentType]
        (TokenPrompt(["1"]), "prompt"),  # pyright: ignore[reportArgumentType]
        (ChatPrompt([]), "messages"),
        (ChatPrompt([{"role": "user", "content": "\udfff"}]), "messages"),
    ],
)
async def test_a_prompt_that_cannot_be_served_is_refused_by_name(text, prompt, param):
    with pytest.raises(InvalidRequest) as caught:
        await text.encode(prompt)
    assert caught.value.param == param
    assert caught.value.status == 400
    assert await text.encode(TextPrompt("a")) == [97]


class GatedTokenizer(ByteTokenizer):
    """Holds up every encoding until the gate opens, and counts those at work."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.two_at_work = threading.Barrier(2)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.two_at_work.wait(60)
        self.gate.wait(60)
        return super().encode(text)


async def test_two_prompts_are_encoded_at_a_time_and_the_loop_goes_on():
    tokenizer = GatedTokenizer()
    actor = TextActor(tokenizer, num_threads=2)
    await actor.start()
    asks = [asyncio.create_task(actor.encode(TextPrompt(t))) for t in "abcd"]
    await until(lambda: len(actor.mailbox) == 2)  # both threads have taken one
    tokenizer.gate.set()
    assert await asyncio.gather(*asks) == [[97], [98], [99], [100]]
    await actor.stop(1)
    await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("text")])


class SlowWithLongTexts(ByteTokenizer):
    """Long texts wait for the gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.num_begun = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        if len(text) >= LONG:
            self.num_begun += 1
            assert self.gate.wait(30)
        return super().encode(text)


async def test_long_texts_hold_up_only_each_other():
    tokenizer = SlowWithLongTexts()
    actor = TextActor(tokenizer, num_threads=2)
    await actor.start()
    long = "x" * LONG
    prompts = [TextPrompt(long), ChatPrompt([{"role": "user", "content": long}])] * 2
    asks = [asyncio.create_task(actor.encode(prompt)) for prompt in prompts]
    await until(lambda: tokenizer.num_begun == 1)
    for ask in asks[:2]:  # nobody waits for what is being encoded: it is encoded all the same
        ask.cancel()
    assert await actor.encode(TextPrompt("a")) == [97]
    assert await actor.encode(ChatPrompt([{"role": "user", "content": "a"}]))
    assert await actor.decode([97], skip_special_tokens=False) == "a"
    assert tokenizer.num_begun == 1
    tokenizer.gate.set()
    assert [len(ids) >= LONG for ids in await asyncio.gather(*asks[2:])] == [True, True]
    assert tokenizer.num_begun == 3
    await actor.stop(1)
    with pytest.raises(ServiceDead):
        await actor.encode(TextPrompt(long))
    await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("text")])


async def test_an_encoding_cancelled_at_any_await_leaves_the_actor_as_it_was(text):
    async def usable(was_cancelled: bool):
        assert await text.encode(TextPrompt("a")) == [97]
        assert len(text.mailbox) == 0

    async def encode_slowly_for_the_loop():
        await text.encode(TextPrompt("a"))

    await cancel_at_every_await(encode_slowly_for_the_loop, usable, max_turns=100_000)


async def test_a_stopped_actor_says_so():
    actor = TextActor(ByteTokenizer())
    await actor.start()
    await actor.stop(1)
    with pytest.raises(ServiceDead):
        await actor.encode(TextPrompt("a"))


def test_encoding_needs_no_loop():
    assert encode_prompt(ByteTokenizer(), TextPrompt("a")) == [97]
