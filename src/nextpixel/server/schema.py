"""Request bodies. Names and ranges match the command line; unknown fields are refused."""

from __future__ import annotations

import base64
import binascii
from dataclasses import fields
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.exceptions import HTTPException

from nextpixel.config import SamplingConfig
from nextpixel.config.options import GUIDANCE_AT_MOST
from nextpixel.errors import InputError, shortened

FIELDS = 20  # per form
FIELDS_BYTES = 1 << 16  # of a body without its picture and mask
PICTURES = "image", "mask"
QUOTES = 200  # per JSON body
EXAMPLE = (  # a PNG of 4 x 4 pixels
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAEAQAAAACBiqPTAAAAEElEQVR42mNgYGBgSGBiAAABLABjoqNVLAAAAABJRU5ErkJggg=="
)
MEDIA: dict[str, dict[str, Any]] = {
    "text/event-stream": {"schema": {"type": "string", "description": "Server-sent events, each with a line of JSON."}},
    "image/png": {"schema": {"type": "string", "format": "binary"}},
    "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
}


def _image_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("expected a picture file in base64")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("expected a picture file in base64") from None


Image = Annotated[
    bytes,
    BeforeValidator(_image_bytes),
    WithJsonSchema(
        {
            "type": "string",
            "contentEncoding": "base64",
            "description": "A picture file, or a data: URL.",
            "examples": [EXAMPLE],
        }
    ),
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Layers = int | Annotated[list[int], Field(max_length=1000, fail_fast=True)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", title="Request")

    model: str | None = Field(None, max_length=1000, description="The id of a model; default: the first one.")
    format: Literal["json", "png"] | None = Field(
        None, description="Format of the response; default: by the Accept header, or json."
    )
    timeout_seconds: Positive | None = Field(None, description="Time limit of this request, at most the server's.")


class Sample(Request):
    """New pictures. A field of SamplingConfig that is added here is passed on and shown on the page."""

    n: int = Field(1, ge=1, description="Number of pictures.")
    temperature: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="1 samples from the model's distribution; lower values are safer, 0 always picks the most likely "
        "token (a colour, or a patch of pixels).",
    )
    top_k: int | None = Field(None, ge=1, title="Top-k", description="Sample only from this many most likely tokens.")
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        title="Top-p",
        description="Sample only from the most likely tokens that together have this probability.",
    )
    caption: str | None = Field(
        None, max_length=2000, description="What the pictures show, for a model with words: up to 16 tags, with commas."
    )
    guidance: float = Field(
        1.0, ge=0, le=GUIDANCE_AT_MOST, allow_inf_nan=False, description="How strongly a caption steers; 1 is off."
    )
    allow_colors: str | None = Field(
        None,
        max_length=20_000,
        title="Allowed colours",
        description="Draw only with these colours of the model, as in #ff0000,#00000000,7.",
    )
    forbid_colors: str | None = Field(
        None, max_length=20_000, title="Forbidden colours", description="Draw without these colours."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed, as in nextpixel complete.")
    stream: bool = Field(False, description="Respond with server-sent events: each row as soon as it is drawn.")

    def sampling(self) -> SamplingConfig:
        return SamplingConfig(**self.model_dump(include={field.name for field in fields(SamplingConfig)}))


class Complete(Sample):
    """A picture to complete from its top rows, or around a hole."""

    image: Image
    keep: float = Field(0.5, ge=0, lt=1, description="Fraction of the rows to keep, from the top.")
    mask: Image | None = Field(
        None, description="A picture of what to fill instead, in base64: white is filled, black is kept."
    )
    particles: int = Field(8, ge=1, le=64, description="Versions of each completion with a mask; more are better.")


class Picture(Request):
    """A picture."""

    image: Image


class Features(Picture):
    """A picture and the layers of its features."""

    layer: Layers | None = Field(None, description="One layer, or several; default: the middle one.")


R = TypeVar("R", bound=Request)


def parse(content_type: str, body: bytes, kind: type[R]) -> R:
    """Parse a JSON or form body. Raises InputError with a message that shortens long values, and HTTPException."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in ("application/json", "multipart/form-data"):
        raise HTTPException(415, "expected a body of application/json or multipart/form-data")
    try:
        if media_type == "application/json":
            _check_json(body)
            return kind.model_validate_json(body, strict=True)
        return kind.model_validate(_form(content_type, body))
    except ValidationError as error:
        raise _input_error(error) from None


def _check_json(body: bytes) -> None:
    """The parser cannot be interrupted and collects every error, so everything but picture and mask must be small."""
    if body.count(b'"') > QUOTES or len(body) - sum(sorted(map(len, body.split(b'"')[1::2]))[-2:]) > FIELDS_BYTES:
        raise InputError(f"expected fields of at most {FIELDS_BYTES:,} bytes besides image and mask, got more")


def _form(content_type: str, body: bytes) -> dict[str, Any]:
    try:
        given = form_fields(content_type, body)
        found = {name: value for name, value in given.items() if value not in ("", b"")}
    except Exception as error:  # the standard library's parser, on arbitrary bytes
        raise InputError(f"the form cannot be read ({error}); expected multipart/form-data") from None
    if "," in (layers := str(found.get("layer", ""))):
        found["layer"] = layers.split(",")
    return found


def form_fields(content_type: str, body: bytes) -> dict[str, Any]:
    """The text fields and files of a form (RFC 7578). Raises ValueError."""
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_boundary()
    if not boundary or len(boundary) > 70 or not boundary.isascii():
        raise ValueError("its header has no boundary of at most 70 characters")
    before, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), FIELDS + 2)
    if before.strip() or not parts or not parts.pop().startswith(b"--"):
        raise ValueError(f"it is truncated, or has over {FIELDS} fields")
    found: dict[str, Any] = {}
    for part in parts:
        head, end, value = part.partition(b"\r\n\r\n")
        headers = BytesHeaderParser().parsebytes(head[:FIELDS_BYTES].lstrip())
        name, file = headers.get_param("name", header="content-disposition"), headers.get_filename()
        name = name.removesuffix("[]") if isinstance(name, str) else None  # image[] is image
        if not end or name is None or (file is None and len(value) > FIELDS_BYTES and name not in PICTURES):
            raise ValueError("a field has no name, or is too long")
        if name in found:
            raise ValueError(f"expected each field once, got {name} twice")
        found[name] = value.decode() if file is None else value
    return found


def _input_error(error: ValidationError) -> InputError:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"][:1])
    what = first["msg"].removeprefix("Value error, ")
    got = "" if place in ("", *PICTURES) or first["type"] == "missing" else f", got {shortened(first['input'])}"
    return InputError(f"{what[:1].lower() + what[1:]}{got}", argument=place) if place else InputError(what)


class Error(BaseModel):
    """As OpenAI's API has it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(BaseModel):
    """Refused, with a message that says why."""

    error: Error


def refusal(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The JSON of a Refusal; `param` is the field that is wrong."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def request_body(kind: type[Request]) -> dict[str, Any]:
    """The OpenAPI entry of a body, as JSON or as a form with files."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    files = {name: {"type": "string", "format": "binary"} for name in PICTURES if name in schema["properties"]}
    form = schema | {"properties": schema["properties"] | files}
    example: dict[str, Any] = {"image": EXAMPLE} if "image" in files else {"n": 2, "seed": 7}
    example |= {"keep": 0.5} if "keep" in schema["properties"] else {}
    content = {"application/json": {"schema": schema, "example": example}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def responses(*types: str, json: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entry of what a route answers with: media types, and JSON of that model."""
    return {200: {"content": {name: MEDIA[name] for name in types}} | ({} if json is None else {"model": json})}
