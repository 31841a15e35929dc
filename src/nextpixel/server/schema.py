"""What requests hold. Names and ranges are those of the command line; what is unknown is refused."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from nextpixel.config import SamplingConfig
from nextpixel.errors import InputError


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
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "description": "A picture file, or a data: URL."}),
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", title="Request")

    model: str | None = Field(None, description="The id of a model; the first one unless told.")
    format: Literal["json", "png"] | None = Field(
        None, description="Of the answer; else by the Accept header, or json."
    )


class Sample(Request):
    """Pictures from nothing."""

    n: int = Field(1, ge=1, description="How many.")
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63, description="Fixes the draw, as in nextpixel complete.")
    stream: bool = Field(False, description="Answer with server-sent events: every row as soon as it is drawn.")
    timeout_seconds: Positive | None = Field(None, description="Time for this request, at most the server's.")

    def sampling(self) -> SamplingConfig:
        return SamplingConfig(self.temperature, self.top_k, self.top_p, self.seed)


class Complete(Sample):
    """A picture of which the top rows are kept."""

    image: Image
    keep: float = Field(0.5, ge=0, lt=1, description="Fraction of the rows that is kept, from the top.")


class Picture(Request):
    """A picture."""

    image: Image


class Features(Picture):
    """A picture, and which hidden states of it."""

    layer: int | list[int] | None = Field(None, description="One layer, or several; the middle one unless told.")


R = TypeVar("R", bound=Request)


def from_json(kind: type[R], body: bytes) -> R:
    """Raises InputError in one sentence that does not repeat long values."""
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise InputError(_sentence(error)) from None


def from_form(kind: type[R], fields: dict[str, Any]) -> R:
    """The same from the fields of a form: texts, and the bytes of a file."""
    try:
        if "layer" in fields and "," in str(fields["layer"]):
            fields = fields | {"layer": str(fields["layer"]).split(",")}
        return kind.model_validate(fields)
    except ValidationError as error:
        raise InputError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"][:1])
    what = first["msg"].removeprefix("Value error, ")
    got = "" if place in ("", "image") or first["type"] == "missing" else f", got {_short(first['input'])}"
    return f"{place}: {what[:1].lower() + what[1:]}{got}" if place else what


def _short(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=True)
    return text if len(text) <= 40 else f"{text[:37]}..."


REFUSED: dict[str, Any] = {
    "description": "Refused, with a sentence that says why",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "error": {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}
                },
                "required": ["error"],
            }
        }
    },
}


def described(kind: type[Request], *answers: str) -> dict[str, Any]:
    """What OpenAPI is told of a route: a body of JSON, or a form whose picture is a file; answers beside JSON."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    form = schema | {"properties": dict(schema["properties"])}
    if "image" in form["properties"]:
        form["properties"]["image"] = {"type": "string", "format": "binary"}
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}, "responses": given(*answers)}


def given(*answers: str) -> dict[int | str, dict[str, Any]]:
    return {"200": {"content": {answer: {} for answer in answers}}}
