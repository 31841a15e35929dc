"""Linear probes: what a layer's pooled features know about labels, by logistic regression.

Layer and strength are chosen on held-out training images; test images are never looked at before the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nextpixel.config import Levels, Pooling, check_keywords
from nextpixel.data.labels import class_numbers, folds_of, given_labels, has_label
from nextpixel.errors import InputError
from nextpixel.files import new_folder, new_output, read_json, write_json
from nextpixel.images.sources import load_images, open_source, settle
from nextpixel.limits import open_arrays
from nextpixel.network.model import ImageGPT
from nextpixel.network.resnet import ResNet
from nextpixel.representation.extraction import Backbone, check_layers, described, pooled, pooled_width, tokenizer_hash
from nextpixel.stats import Score, likeliest, majority, middle_best, score_of

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of scikit-learn's C; on standardised features the best lies within
MIDDLE_STRENGTH = STRENGTHS[2]


@dataclass(frozen=True)
class Linear:
    """Standardise, multiply, add: features (N, D) to logits (N, C)."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        return ((features - self.mean) / self.scale @ self.weight.T + self.bias).astype(np.float32)

    def calibrated(self, temperature: float, shift: NDArray[np.float32]) -> Linear:
        """The same with logits / temperature + shift."""
        return replace(
            self, weight=self.weight / np.float32(temperature), bias=self.bias / np.float32(temperature) + shift
        )


class LinearProbe:
    """Logistic regression (L-BFGS) on standardised features of one layer, or several concatenated.

    layer   "best": the one layer with the highest held-out accuracy; a number; or numbers to concatenate
    seed    fixes what is held out
    strengths   of scikit-learn's C, to choose among
    pooling     over the pixels: "mean", as in the paper, or "mean-std"

    After fit: `trials_` (what was tried, each with its held-out accuracy), `layers_` (list), `strength_`
    (scikit-learn's C), `classes_`, `sweep_` {layer: held-out accuracy}, `temperature_`, `linear_`. Of equally accurate
    candidates the middle layer and the weaker penalty (the larger C) are taken. The final weights are fitted to all
    training images; then logits are divided by `temperature_` and shifted by class, which calibrates the probabilities
    on what was held out. With one image of each class nothing can be held out: then the middle layer and strength are
    taken, `sweep_` is empty, nothing is tried, and `temperature_` is None: probabilities are not calibrated.
    """

    @check_keywords()
    def __init__(
        self,
        model: Backbone | None,
        layer: Literal["best"] | int | Sequence[int] = "best",
        *,
        seed: int = 0,
        strengths: Sequence[float] = STRENGTHS,
        pooling: Pooling = "mean",
    ) -> None:
        self.model, self.layer, self.seed, self.strengths, self.pooling = model, layer, seed, strengths, pooling
        self.levels = Levels()  # of the images it was fitted to

    def fit(self, images: Any, labels: ArrayLike | None = None, *, split: str | None = None) -> LinearProbe:
        """Images as everywhere; labels (N,) numbers or names, or those that the source has. Returns itself."""
        features, names = self.read(images, labels, split=split)
        return self.fit_features(features, names, layers=self._wanted())

    def fit_features(
        self, features: NDArray[np.float32], labels: ArrayLike, *, layers: Sequence[int] | None = None
    ) -> LinearProbe:
        """The same from features (N, J, D) of `layers` (J,), which `layer="best"` chooses among."""
        self.classes_, numbers = np.unique(np.asarray(labels), return_inverse=True)
        if len(features) != len(numbers):
            raise InputError(f"expected {len(features)}, one for each image, got {len(numbers)}", argument="labels")
        if len(self.classes_) < 2:
            raise InputError(f"expected at least two classes, got only {self.classes_[0]!r}", argument="labels")
        layers = list(range(features.shape[1])) if layers is None else list(layers)
        folds = folds_of(numbers, self.seed)
        if not folds:
            self.trials_, self.sweep_, self.strength_ = [], {}, MIDDLE_STRENGTH
            place = len(layers) // 2
            self.layers_ = [layers[place]] if self.layer == "best" else layers
            chosen = features[:, place] if self.layer == "best" else features.reshape(len(features), -1)
        elif self.layer == "best":
            tried = {
                layer: _try(features[:, place], numbers, folds, self.strengths) for place, layer in enumerate(layers)
            }
            self.trials_ = [trial | {"layers": [layer]} for layer in layers for trial in tried[layer]]
            found = {layer: _choose(trials) for layer, trials in tried.items()}
            self.sweep_ = {layer: accuracy for layer, (accuracy, _) in found.items()}
            best = layers[middle_best(list(self.sweep_.values()))]
            self.layers_, (_, self.strength_) = [best], found[best]
            chosen = features[:, layers.index(best)]
        else:
            self.layers_ = layers
            chosen = features.reshape(len(features), -1)
            trials = _try(chosen, numbers, folds, self.strengths)
            self.trials_ = [trial | {"layers": layers} for trial in trials]
            accuracy, self.strength_ = _choose(trials)
            self.sweep_ = {layer: accuracy for layer in layers[:1]} if len(layers) == 1 else {}
        calibration = _calibration(chosen, numbers, folds, self.strength_) if folds else None
        self.linear_, self.temperature_ = fit_linear(chosen, numbers, self.strength_), None
        if calibration is not None:
            self.linear_, self.temperature_ = self.linear_.calibrated(*calibration), calibration[0]
        return self

    @classmethod
    def of(cls, model: ImageGPT) -> LinearProbe:
        """The class head of a fine-tuned model as what it is, a linear probe of the last layer.

        Raises InputError for a model without a class head.
        """
        if model.class_head is None:
            raise InputError(
                "this model was trained on pictures alone and knows no classes; fit a probe to labelled images "
                "(nextpixel probe LABELLED `out=probe`) or fine-tune it on them (nextpixel finetune LABELLED "
                "`out=runs/clf`)"
            )
        probe, width = cls(model, model.config.layers), model.config.width
        probe.layers_, probe.sweep_, probe.temperature_ = [model.config.layers], {}, None
        probe.classes_ = np.array(model.config.classes)
        weight = model.class_head.weight.detach().float().cpu().numpy()
        zero, one = np.zeros(width, np.float32), np.ones(width, np.float32)
        probe.linear_ = Linear(zero, one, weight, np.zeros(len(weight), np.float32))
        return probe

    def predict_proba(self, images: Any, *, split: str | None = None, masks: int = 0) -> NDArray[np.float32]:
        """Probabilities (N, C), columns in the order of `classes_`; with `masks`, their mean, see predictions."""
        return self.predictions(self._squares(images, split), masks=masks)[0]

    def predict(self, images: Any, *, split: str | None = None, masks: int = 0) -> NDArray[Any]:
        """The likeliest class of each image, (N,); with `masks`, the one with most votes."""
        return self.classes_[self.predictions(self._squares(images, split), masks=masks)[1]]

    def predictions(
        self, squares: NDArray[np.uint8], *, masks: int = 0, dtype: str = "fp32"
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(probabilities (N, C), places in `classes_` (N,)) of squares at the model's side.

        The class is the likeliest by the calibrated probabilities, which is also what is scored. A masked model may
        look `masks` times, each time with other pixels hidden: the probabilities are then means and the class is the
        one it names most often (Chen et al. 2020 take five). Ties fall at random; they and the masks follow from `seed`
        and the place among the images. Raises InputError for masks with a model that is not masked.
        """
        model = self._model()
        if not masks:
            features = described(model, squares, self.layers_, dtype=dtype, pooling=self.pooling)
            chances = self.proba_of(features.reshape(len(squares), -1))
            return chances, likeliest(chances, self.seed)
        if isinstance(model, ResNet) or model.config.objective != "masked":
            kind = "student" if isinstance(model, ResNet) else f"model of the {model.config.objective} objective"
            raise InputError(
                f"expected none for a {kind}, got {masks}; only masked models were trained with hidden pixels",
                argument="masks",
            )
        tokens = model.tokenizer.encode(np.ascontiguousarray(squares))

        def proba(mask_seed: int) -> NDArray[np.float32]:
            features = pooled(model, tokens, self.layers_, dtype=dtype, mask_seed=mask_seed, pooling=self.pooling)
            return self.proba_of(features.reshape(len(squares), -1))

        seeds = np.random.SeedSequence([self.seed, 0x3A5C]).generate_state(masks)
        several = np.stack([proba(int(seed)) for seed in seeds])  # (masks, N, C)
        return several.mean(0), majority(several.argmax(2), len(self.classes_), self.seed)

    def score(self, images: Any, labels: ArrayLike | None = None, *, split: str | None = None) -> float:
        """Accuracy, as scikit-learn's classifiers give it."""
        return self.evaluate(images, labels, split=split).accuracy

    def evaluate(self, images: Any, labels: ArrayLike | None = None, *, split: str | None = None) -> Score:
        """Accuracy, top-5, AUC and confusion on test images."""
        source = open_source(images, split)
        names = given_labels(source, labels)
        squares, known = self._squares(source, None), has_label(names)
        return self.evaluate_squares(squares[known], names[known])

    def evaluate_squares(
        self,
        squares: NDArray[np.uint8],
        labels: ArrayLike,
        *,
        masks: int = 0,
        dtype: str = "fp32",
        seen: NDArray[np.bool_] | None = None,
    ) -> Score:
        """The same from squares at the model's side; `masks` as in predictions, `seen` as in metrics.score_of."""
        numbers = class_numbers(labels, self.classes_)  # refuses before the long work
        chances, predicted = self.predictions(squares, masks=masks, dtype=dtype)
        return score_of(chances, numbers, len(self.classes_), predicted, seen)

    def evaluate_features(
        self, features: NDArray[np.float32], labels: ArrayLike, *, seen: NDArray[np.bool_] | None = None
    ) -> Score:
        """The same from the features (N, D) that the probe reads."""
        numbers = class_numbers(labels, self.classes_)
        chances = self.proba_of(features)
        return score_of(chances, numbers, len(self.classes_), likeliest(chances, self.seed), seen)

    def proba_of(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (N, C) from the features (N, D) that the probe reads."""
        logits = self.linear_.logits(features)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    def read(
        self,
        images: Any,
        labels: ArrayLike | None = None,
        *,
        split: str | None = None,
        layers: Sequence[int] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Features (N, J, D) of `layers`, by default all that fit needs, and the labels; of
        pictures that have one."""
        model = self._model()
        source = open_source(images, split)
        names = given_labels(source, labels)
        self.levels, _ = settle(source, model.levels)
        squares, known = self._squares(source, None), has_label(names)
        wanted = self._wanted() if layers is None else layers
        return described(model, squares[known], wanted, pooling=self.pooling), names[known]

    def save(self, folder: str | Path, *, model_name: str) -> None:
        """Write the probe into a new folder: probe.json and probe.npz, no pickle; `model_name` finds its model."""
        with new_folder(new_output(folder, "folder")) as part:
            with (part / "probe.npz").open("wb") as file:
                np.savez(file, **vars(self.linear_))
            write_json(
                part / "probe.json",
                {
                    "model": model_name,
                    "fit": self._model().fit,
                    **self.levels.over(self._model().levels).values(),
                    "palette": tokenizer_hash(self._model()),
                    "layers": self.layers_,
                    "pooling": self.pooling,
                    "strength": self.strength_,
                    "temperature": self.temperature_,
                    "classes": self.classes_.tolist(),
                    "sweep": {str(layer): accuracy for layer, accuracy in self.sweep_.items()},
                    "seed": self.seed,
                },
            )

    @classmethod
    def load(cls, folder: str | Path, model: Backbone) -> LinearProbe:
        """A saved probe, for the model it was fitted with."""
        facts = read_json(Path(folder) / "probe.json")
        try:
            layers = check_layers(model, facts["layers"])
            pooling = facts.get("pooling", "mean")
            if pooling not in get_args(Pooling):
                raise ValueError(f"pooling {pooling!r}")
            probe = cls(model, layers, seed=facts["seed"], pooling=pooling)
            probe.levels = Levels.of(facts.get("range"), facts.get("bands"))
            probe.layers_, probe.strength_ = layers, facts["strength"]
            probe.temperature_ = facts.get("temperature")  # older probes have none: they are not calibrated
            probe.classes_ = np.asarray(facts["classes"])
            probe.sweep_ = {int(layer): accuracy for layer, accuracy in facts["sweep"].items()}
            with open_arrays(Path(folder) / "probe.npz") as arrays:
                probe.linear_ = Linear(**{name: arrays[name] for name in ("mean", "scale", "weight", "bias")})
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{folder}: expected a saved probe, got a problem with {error}") from None
        for name, array in vars(probe.linear_).items():
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise InputError(f"{folder}: {name}: expected finite numbers, got {array.dtype} with others among them")
        width = len(layers) * pooled_width(model, probe.pooling)
        if facts["palette"] != tokenizer_hash(model) or probe.linear_.weight.shape[1] != width:
            raise InputError(f"{folder}: this probe was fitted with another model, {facts['model']!r}; load that one")
        return probe

    def _squares(self, images: Any, split: str | None) -> NDArray[np.uint8]:
        model = self._model()
        levels = self.levels.over(model.levels)
        return load_images(images, model.size, split=split, fit=model.fit, levels=levels)

    def _wanted(self) -> list[int]:
        model = self._model()
        return list(range(model.config.layers + 1)) if self.layer == "best" else check_layers(model, self.layer)

    def _model(self) -> Backbone:
        if self.model is None:
            raise ValueError("this probe has no model; it can only be used with features")
        return self.model


def fit_linear(features: NDArray[np.float32], labels: NDArray[np.integer], strength: float) -> Linear:
    """Logistic regression of labels 0..C-1 on standardised features (N, D)."""
    [linear] = fit_linears(features, labels, [strength])
    return linear


def fit_linears(features: NDArray[np.float32], labels: NDArray[np.integer], strengths: Sequence[float]) -> list[Linear]:
    """The same for several strengths."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = standard(features)
    points, basis = (features - mean) / scale, None
    if points.shape[0] < points.shape[1]:  # the weights lie in the span of the points: solve it there, exactly
        left, size, basis = np.linalg.svd(points, full_matrices=False)
        points = left * size
    found = []
    for strength in strengths:
        regression = LogisticRegression(C=strength, max_iter=1000, tol=1e-3).fit(points, labels)
        weight, bias = regression.coef_, regression.intercept_
        if basis is not None:
            weight = weight @ basis
        if len(weight) == 1:  # two classes: one logit against 0
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        found.append(Linear(mean, scale, weight.astype(np.float32), bias.astype(np.float32)))
    return found


def standard(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale (D,) of features (N, D), to standardise by; the scale of one that never changes is 1."""
    mean, scale = features.mean(0), features.std(0)
    scale[scale < 1e-6] = 1.0
    return mean, scale


def _try(
    features: NDArray[np.float32],
    labels: NDArray[np.integer],
    folds: Sequence[NDArray[np.bool_]],
    strengths: Sequence[float],
) -> list[dict[str, Any]]:
    """Each strength with its accuracy on what is held out."""
    right: list[list[NDArray[np.bool_]]] = [[] for _ in strengths]
    for held in folds:
        for hits, linear in zip(right, fit_linears(features[~held], labels[~held], strengths), strict=True):
            hits.append(linear.logits(features[held]).argmax(1) == labels[held])
    return [
        {"strength": strength, "held_out_accuracy": float(np.concatenate(hits).mean())}
        for strength, hits in zip(strengths, right, strict=True)
    ]


def _choose(trials: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """(held-out accuracy, strength) of the best strength; of equal ones the weaker penalty."""
    best = max(trials, key=lambda trial: (trial["held_out_accuracy"], trial["strength"]))
    return best["held_out_accuracy"], best["strength"]


def _calibration(
    features: NDArray[np.float32], labels: NDArray[np.integer], folds: Sequence[NDArray[np.bool_]], strength: float
) -> tuple[float, NDArray[np.float32]]:
    """(temperature, shift (C,)): logits / temperature + shift have the likeliest softmax on what is held out.

    Bias-corrected temperature scaling (Alexandari et al. 2020), with a standard normal prior of the shift. Of n
    held-out images one in n + 2 more than were seen is expected to be wrong (Laplace's rule), so that classes which
    nothing confuses do not become certain.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    parts = [fit_linear(features[~held], labels[~held], strength).logits(features[held]) for held in folds]
    logits = np.concatenate(parts).astype(np.float64)
    count, classes = logits.shape
    targets = np.full(logits.shape, 1 / (count + 2) / (classes - 1))
    targets[np.arange(count), np.concatenate([labels[held] for held in folds])] = 1 - 1 / (count + 2)

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, shift = np.exp(values[0]), values[1:]
        chances = log_softmax(scale * logits + shift, axis=1)
        excess = np.exp(chances) - targets
        slope = np.concatenate([[scale * (excess * logits).sum()], excess.sum(0) + shift])
        return float(shift @ shift / 2 - (targets * chances).sum()), slope

    found = minimize(
        loss, np.zeros(1 + classes), jac=True, method="L-BFGS-B", bounds=[(-7, 7)] + [(None, None)] * classes
    )
    return float(np.exp(-found.x[0])), found.x[1:].astype(np.float32)


def middle_strengths(count: int) -> list[float]:
    """That many strengths, from the middle outwards; all of them at most."""
    return sorted(STRENGTHS, key=lambda strength: abs(np.log(strength / MIDDLE_STRENGTH)))[:count]
