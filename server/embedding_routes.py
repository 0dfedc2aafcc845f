"""POST /v1/embeddings: what the served model makes of a text, as a vector."""

from __future__ import annotations

import itertools
from contextlib import aclosing
from typing import Annotated, Any, Literal, cast

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from jaxsgl.interface import GenerateRequest, InvalidRequest, SamplingParams, Unavailable, Usage
from jaxsgl.vectors import base64_of, floats_of, shortened
from server.chat_plan import new_head
from server.context import CONTEXT, TENANT, ready_engine
from server.deltas import answer_deltas
from server.json_body import read_json
from server.replies import PromptTokensDetails
from server.replying import raise_if_error, whole_response
from server.requests import check_model_name, completion_prompts
from server.route import GENERATION_ERRORS, Route
from server.schema import MAX_CHOICES

MAX_INPUTS = 2048
"""As OpenAI has it."""
MAX_VALUES = 1 << 21
"""Numbers in one answer."""
_SAMPLING = SamplingParams(max_tokens=0, temperature=0.0, embedding=True)


class EmbeddingsBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/embeddings. null is the same as absent throughout."""

    input: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    """A text, a list of token ids, or a list of either."""
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    """base64: of the numbers as float32, little-endian."""
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    """The first so many numbers, scaled to length 1 again."""
    user: str | None = None
    """Accepted, and without effect."""


class Embedding(Struct, frozen=True, kw_only=True):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Of length 1."""


class EmbeddingUsage(Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class EmbeddingList(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
    pooling: Literal["last"] = "last"
    """The vector is the hidden state of the last token, after the model's last norm."""
    gpu_count: int = msgspec.field(name="x-sglang-gpu-count")
    """Devices of the replicas that take requests."""


EMBEDDINGS_DECODER = msgspec.json.Decoder(EmbeddingsBody)


def embedding_routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/v1/embeddings",
            handler=embeddings,
            body=EMBEDDINGS_DECODER,
            answers={200: EmbeddingList},
            errors=GENERATION_ERRORS,
        )
    ]


async def embeddings(request: web.Request) -> web.StreamResponse:
    """Vectors of texts or of lists of token ids: the last token's hidden state in the served
    model."""
    engine = ready_engine(request)
    body = await read_json(request, EMBEDDINGS_DECODER)
    check_model_name(body.model, engine.model.name)
    full_len = engine.model.embedding_len
    if (body.dimensions or 0) > full_len:
        message = f"The embeddings of this model have {full_len} dimensions"
        raise InvalidRequest(message, param="dimensions")
    prompts = completion_prompts(body.input, param="input")
    if len(prompts) > min(MAX_INPUTS, max(1, MAX_VALUES // (body.dimensions or full_len))):
        raise InvalidRequest("input has too many entries for one answer", param="input")
    head = new_head("embd", engine)
    requests = [
        GenerateRequest(request_id=f"{head.reply_id}-{index}", prompt=prompt, sampling=_SAMPLING)
        for index, prompt in enumerate(prompts)
    ]
    answer = _Answer(body)
    # A few at a time: others have a right to places in the queue.
    for some in itertools.batched(enumerate(requests), MAX_CHOICES):
        indices = [index for index, _ in some]
        deltas = answer_deltas(request.app[CONTEXT], [each for _, each in some], request[TENANT])
        async with aclosing(deltas):
            async for index, delta in deltas:
                raise_if_error(delta.finish)
                if delta.finish is not None:
                    answer.add(indices[index], delta.embedding, delta.usage)
    reply = EmbeddingList(
        model=head.model, data=answer.data, usage=answer.usage, gpu_count=head.gpu_count
    )
    return await whole_response(request, msgspec.json.encode(reply))


class _Answer:
    """Vectors as they come. Each is written at once: all together would hold up every stream."""

    def __init__(self, body: EmbeddingsBody) -> None:
        self._body = body
        self._data: dict[int, msgspec.Raw] = {}
        self._prompt_tokens = 0
        self._cached_tokens = 0

    def add(self, index: int, vector: bytes | None, usage: Usage) -> None:
        if vector is None:  # somebody aborted it
            raise Unavailable("The request was aborted")
        if self._body.dimensions is not None:
            vector = shortened(vector, self._body.dimensions)
        as_base64 = self._body.encoding_format == "base64"
        values = base64_of(vector) if as_base64 else floats_of(vector)
        item = msgspec.json.encode(Embedding(index=index, embedding=values))
        self._data[index] = msgspec.Raw(item)
        self._prompt_tokens += usage.prompt_tokens
        self._cached_tokens += usage.cached_tokens

    @property
    def data(self) -> list[Embedding]:
        """By index, written already."""
        return cast(list[Any], [self._data[index] for index in sorted(self._data)])

    @property
    def usage(self) -> EmbeddingUsage:
        details = PromptTokensDetails(self._cached_tokens)
        return EmbeddingUsage(self._prompt_tokens, self._prompt_tokens, details)
