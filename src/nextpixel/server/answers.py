"""JSON of the responses, as the OpenAPI description has it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

PNG = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"})]
Side = Annotated[int | tuple[int, int], Field(description="In pixels; rows and columns where they differ.")]


class Drawing(BaseModel):
    """Drawn pictures. Without a mask it has `kept_rows`; with one, `filled_pixels`, `log_evidence` and `ancestors`."""

    model: str
    mode: str = Field(description="How the network was run.")
    seed: int
    images: list[PNG]
    nats: list[float] = Field(description="Per drawn pixel, of each picture.")
    seconds: dict[str, float] = Field(description="`queue` and `first_row` (both without a mask), `total`.")
    kept_rows: int | None = None
    filled_pixels: int | None = None
    log_evidence: list[float] | None = Field(
        None,
        description="Of each picture: estimated ln p of the known pixels after the hole's first, given those before.",
    )
    ancestors: list[int] | None = Field(
        None, description="Of each picture: how many of its first versions have descendants at the end of the hole."
    )


class Reconstruction(BaseModel):
    """What the model's tokens keep of a picture."""

    model: str
    side: Side
    image: PNG


class Score(BaseModel):
    """How likely a picture is."""

    model: str
    nats_per_pixel: float = Field(description="-ln p; lower is more likely.")
    heat: list[list[float]] = Field(description="Nats of every pixel, row by row.")


class FeatureVector(BaseModel):
    """Features of a picture, those of several layers one after the other."""

    model: str
    layers: list[int]
    features: list[float]


class Classification(BaseModel):
    """The most probable class, and the probability of each."""

    name: str = Field(alias="class")
    probabilities: dict[str, float]


class ImageData(BaseModel):
    """One picture, as OpenAI's API has it."""

    b64_json: PNG


class Images(BaseModel):
    """Pictures, as OpenAI's API has them."""

    created: int = Field(description="Seconds since 1970.")
    data: list[ImageData]
    background: Literal["transparent", "opaque"]
    output_format: Literal["png"]
    size: str = Field(description="Width x height, as 64x32.")


class Model(BaseModel):
    """What this package says of a model."""

    id: str
    side: Side
    fit: str = Field(description="How pictures become its own: crop, squash or place.")
    patch: tuple[int, int] = Field(description="Rows and columns of pixels that a token covers.")
    colors: int = Field(description="Size of its vocabulary.")
    parameters: int
    layers: int
    width: int
    heads: int
    objective: str
    trained_on: Any
    steps: Any
    words: list[str] | None
    mode: str | None = Field(description="How it is run to draw; null for a masked model.")
    facts: dict[str, Any]


class ModelName(BaseModel):
    """A model, as OpenAI's API lists it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Limits(BaseModel):
    """Of a request."""

    n: int
    upload_mb: float
    pixels: int


class Models(BaseModel):
    """The models of this server, in our form and in that of OpenAI's API (`data`)."""

    models: list[Model]
    limits: Limits
    classes: list[str] | None = Field(description="Of the classifier, if there is one.")
    object: Literal["list"]
    data: list[ModelName]
