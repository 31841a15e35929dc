"""JSON of the responses, as the OpenAPI description has it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

PNG: dict[str, Any] = {"contentEncoding": "base64", "contentMediaType": "image/png"}
Side = int | tuple[int, int]


class Drawing(BaseModel):
    """Drawn pictures. `kept_rows` is there without a mask, and with one the fields that default to null."""

    model: str
    mode: str = Field(description="How the network was run.")
    seed: int
    images: list[str] = Field(description="PNG files in base64.")
    nats: list[float] = Field(description="Per drawn pixel, of each picture.")
    seconds: dict[str, float] = Field(description="In the queue, to the first row (both without a mask), total.")
    kept_rows: int | None = None
    filled_pixels: int | None = None
    log_evidence: list[float] | None = Field(None, description="An estimate of what is kept, in nats.")
    ancestors: list[int] | None = Field(None, description="Versions of each picture from which the last ones descend.")


class Reconstruction(BaseModel):
    """What the model's tokens keep of a picture."""

    model: str
    side: Side
    image: str = Field(json_schema_extra=PNG)


class Score(BaseModel):
    """How likely a picture is."""

    model: str
    nats_per_pixel: float
    heat: list[list[float]] = Field(description="Nats of every pixel, row by row.")


class Features(BaseModel):
    """Features of a picture, those of several layers one after the other."""

    model: str
    layers: list[int]
    features: list[float]


class Classification(BaseModel):
    """The most probable class, and the probability of each."""

    name: str = Field(alias="class")
    probabilities: dict[str, float]


class Picture(BaseModel):
    """One picture, as OpenAI's API has it."""

    b64_json: str = Field(json_schema_extra=PNG)


class Pictures(BaseModel):
    """Pictures, as OpenAI's API has them."""

    created: int
    data: list[Picture]
    background: str
    output_format: str
    size: str
