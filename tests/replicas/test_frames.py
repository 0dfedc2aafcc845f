import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsgl.actors import messages as m
from jaxsgl.config import EngineConfig
from jaxsgl.interface import (
    ChoiceGrammar,
    EbnfGrammar,
    EngineStats,
    Finish,
    GrammarReport,
    JsonObjectGrammar,
    JsonSchemaGrammar,
    LarkGrammar,
    ModelInfo,
    RegexGrammar,
    SamplingParams,
    TerminalReport,
    TokenLogprob,
)
from jaxsgl.logs import LogSettings
from jaxsgl.replicas import frames
from jaxsgl.replicas.frames import (
    MAX_FRAME_BYTES,
    FrameError,
    FrameReader,
    Hello,
    Start,
    encode_frame,
    from_front_decoder,
    from_replica_decoder,
)
from jaxsgl.scheduling.outputs import RowOutput

MODEL = ModelInfo(
    name="echo",
    architecture="llama",
    vocab_size=256,
    context_len=64,
    eos_token_ids=(0,),
    has_chat_template=True,
    num_devices=1,
    mesh="tp=1",
    platform="cpu",
    attention_backend="xla",
)
GRAMMARS = (
    LarkGrammar('start: "a"'),
    RegexGrammar("a"),
    ChoiceGrammar(("a", "b")),
    JsonObjectGrammar(),
    JsonSchemaGrammar("{}"),
    EbnfGrammar('root ::= "a"'),
)
REPORT = GrammarReport(
    engine="lark",
    compile_ms=1.5,
    terminals=[TerminalReport("A", "a")],
    conflicts=[],
    warnings=["none"],
    prefix_taken_len=0,
    num_allowed_tokens=1,
    allowed_tokens=[(3, b"\xff")],
    can_end=False,
    forced=b"\xff",
)
FROM_FRONT = [
    Start(
        3, EngineConfig(model_path="a b", random_seed=7, radix_cache=False), LogSettings("debug")
    ),
    m.Admit("r", [1, 2], SamplingParams(stop=("x",), logit_bias={3: -1.5}, seed=-(2**63)), "ns", 2),
    *(m.Admit("r", [1], SamplingParams(grammar=grammar)) for grammar in GRAMMARS),
    m.CheckGrammar(2, GRAMMARS[0], b"\xff"),
    m.Abort("r", "gone"),
    m.LetGo("r"),
    m.FlushCache(1),
    m.Drain(0.5),
    m.Stop(),
]
FROM_REPLICA = [
    Hello("secret"),
    m.Progress("compiling", 1, 3),
    m.Ready(MODEL, 63, ("a note",)),
    m.StartFailed("no such file"),
    m.StepOutputs(
        5,
        [
            RowOutput("r", [4], b"\xff", 2, 1, 0, Finish("stop", "x"), [TokenLogprob(4, -0.5)]),
            RowOutput(
                "s", [4], b"", 2, 1, 0, None, None, [None, TokenLogprob(4, -0.5, [(1, -2.0)])]
            ),
        ],
    ),
    m.Refused("r", "no grammar"),
    m.Checked(2, REPORT),
    m.Checked(2, error="no grammar"),
    m.Released(["r", "s"]),
    m.Report(EngineStats(num_running=2, pages_total=9)),
    m.Reply(1, "no"),
    m.Drained(),
]


def test_every_message_comes_back_as_it_was():
    reader = FrameReader(from_front_decoder)
    assert [*reader.feed(b"".join(map(encode_frame, FROM_FRONT)))] == FROM_FRONT
    reader = FrameReader(from_replica_decoder)
    assert [*reader.feed(b"".join(map(encode_frame, FROM_REPLICA)))] == FROM_REPLICA


@given(st.lists(st.integers(1, 40)))
def test_the_stream_may_be_cut_anywhere(cuts: list[int]):
    stream = b"".join(map(encode_frame, FROM_REPLICA))
    reader = FrameReader(from_replica_decoder)
    got = []
    for cut in [*cuts, len(stream)]:
        got += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert got == FROM_REPLICA


def test_a_frame_that_is_too_large_is_refused_by_its_header():
    reader = FrameReader(from_front_decoder)
    with pytest.raises(FrameError):
        list(reader.feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big")))
    reader = FrameReader(from_front_decoder, max_frame_bytes=10)
    frame = encode_frame(m.Abort("a-long-request-id", ""))
    with pytest.raises(FrameError):
        list(reader.feed(frame[:4]))


def test_a_message_that_is_too_large_is_not_sent(monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 1000)
    encode_frame(m.Abort("r", "x" * 900))
    with pytest.raises(FrameError):
        encode_frame(m.Abort("r", "x" * 1000))


def test_what_came_before_a_broken_frame_is_delivered():
    reader = FrameReader(from_front_decoder)
    messages = reader.feed(encode_frame(m.Stop()) + b"\x00\x00\x00\x01\xc1")
    assert next(messages) == m.Stop()
    with pytest.raises(FrameError):
        next(messages)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode({"type": "unheard-of"}),
        msgspec.msgpack.encode({"type": "abort", "request_id": 5, "reason": ""}),
        msgspec.msgpack.encode({"type": "abort", "request_id": "r"}),
        msgspec.msgpack.encode(m.Stop()) + b"\x00",
        b"\x91" * 10_000,
        b"\x82\xa4type\xa5abort\xaarequest_id\xa1\xff",
    ],
)
def test_what_is_no_message_is_refused(body: bytes):
    reader = FrameReader(from_front_decoder)
    with pytest.raises(FrameError):
        list(reader.feed(len(body).to_bytes(4, "big") + body))


@given(st.binary(max_size=200))
def test_any_bytes_give_messages_or_a_frame_error(data: bytes):
    try:
        list(FrameReader(from_replica_decoder).feed(data))
    except FrameError:
        pass
