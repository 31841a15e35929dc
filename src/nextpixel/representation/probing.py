"""Linear probes: logistic regression on a layer's pooled features.

Layer, pooling and regularisation strength are chosen on held-out training images, never on test images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nextpixel.config import Fit, Levels, Pooling, check_fit, check_keywords, check_number
from nextpixel.data.labels import class_numbers, folds_of, given_labels, has_label
from nextpixel.errors import InputError
from nextpixel.files import new_folder, new_output, read_json, write_json
from nextpixel.images.sources import load_images, open_source, settle, sprites_of
from nextpixel.limits import open_arrays
from nextpixel.network.model import ImageGPT
from nextpixel.network.resnet import ResNet
from nextpixel.representation.extraction import (
    POOLINGS,
    Backbone,
    check_layers,
    features_of,
    mirrored,
    model_hash,
    pooled,
    pooled_columns,
    pooled_width,
    poolings_to_try,
    tokenizer_hash,
)
from nextpixel.representation.logistic import (
    MIDDLE_STRENGTH,
    STRENGTHS,
    Linear,
    best_trial,
    calibrate,
    cross_validate,
    fit_linear,
)
from nextpixel.stats import Score, likeliest, majority, middle_best, score_of


class LinearProbe:
    """Logistic regression on standardised features of one layer, or several concatenated.

    layer       "best": the layer with the lowest held-out log loss; a number; or numbers to concatenate
    seed        chooses the held-out images
    strengths   values of scikit-learn's C to try
    pooling     "best": the pooling over pixels with the lowest held-out log loss; or one of features(): "mean", as in
                the paper, "mean-std" or "grid"
    mirror      average the features of each picture with those of its mirror image, which costs twice the time: better
                where left and right mean nothing, wrong where they do, as in digits or X-rays

    After fit: `trials_` (each setting tried with its held-out accuracy and log loss), `layers_` (list), `pooling_`,
    `strength_` (scikit-learn's C), `classes_`, `sweep_` {layer: held-out accuracy with that pooling}, `temperature_`,
    `linear_`. The log loss chooses, because it varies less than accuracy where few images are held out; ties go to the
    simpler pooling, the middle layer and the weaker penalty (the larger C). The final weights are fitted
    to all training images; logits are then divided by `temperature_` and shifted by class, which calibrates the
    probabilities on the held-out images. With one image of each class nothing can be held out: the simplest pooling and
    the middle layer and strength are used, `trials_` and `sweep_` are empty, and `temperature_` is None because
    probabilities are not calibrated.
    """

    @check_keywords()
    def __init__(
        self,
        model: Backbone | None,
        layer: Literal["best"] | int | Sequence[int] = "best",
        *,
        seed: int = 0,
        strengths: Sequence[float] = STRENGTHS,
        pooling: Literal["best", Pooling] = "best",
        mirror: bool = False,
    ) -> None:
        if pooling not in ("best", *POOLINGS):
            raise InputError(f"expected best or one of {', '.join(POOLINGS)}, got {pooling!r}", argument="pooling")
        check_number("seed", seed, "0 or more", lambda value: value >= 0, whole=True)
        if not len(strengths):
            raise InputError("strengths: expected at least one, got none")
        for strength in strengths:
            check_number("strengths", strength, "a finite number above 0", lambda value: 0 < value < np.inf)
        self.model, self.layer, self.seed, self.strengths, self.pooling = model, layer, seed, strengths, pooling
        self.mirror = mirror
        self.levels = Levels()  # of the training images
        self.fit_of_images: Fit | None = None  # likewise

    def __repr__(self) -> str:
        if not hasattr(self, "layers_"):
            return f"LinearProbe(layer={self.layer!r}, not fitted)"
        strength = "" if self.strength_ is None else f", C {self.strength_:g}"
        return f"LinearProbe({len(self.classes_)} classes, layers {self.layers_}{strength})"

    def fit(self, images: Any, labels: ArrayLike | None = None, *, split: str | None = None) -> LinearProbe:
        """Fit to images and labels (N,), numbers or names; default: the labels of the source. Returns self."""
        model = self._model()
        layers = list(range(model.config.layers + 1)) if self.layer == "best" else check_layers(model, self.layer)
        source, self.levels, _ = settle(open_source(images, split), model.size, model.fit, model.levels)
        self.fit_of_images = model.fit
        names = given_labels(source, labels)
        squares, known = self._squares(source, None), has_label(names)
        poolings = poolings_to_try(model, len(layers), known.sum()) if self.pooling == "best" else [self.pooling]
        features = features_of(model, squares[known], layers, poolings=poolings, mirror=self.mirror)
        return self.fit_features(features, names[known], layers=layers, columns=pooled_columns(model, poolings))

    def fit_features(
        self,
        features: NDArray[np.float32],
        labels: ArrayLike,
        *,
        layers: Sequence[int] | None = None,
        columns: dict[Pooling, slice] | None = None,
    ) -> LinearProbe:
        """Fit to features (N, J, D) of `layers` (J,), from which `layer="best"` chooses, or (N, D) of one.

        Returns self. `columns` are the poolings to choose among, from the simplest, and where they lie along D; by
        default all features are of one pooling.
        """
        self.classes_, numbers = np.unique(np.asarray(labels), return_inverse=True)
        if len(features) != len(numbers):
            raise InputError(f"expected {len(features)}, one for each image, got {len(numbers)}", argument="labels")
        if len(self.classes_) < 2:
            got = f"only {self.classes_.tolist()[0]!r}" if len(self.classes_) else "no images"
            raise InputError(f"expected at least two classes, got {got}", argument="labels")
        features = features[:, None] if features.ndim == 2 else features
        if not np.isfinite([features.min(), features.max()]).all():
            raise InputError("expected finite features, got NaN or infinity among them")
        fixed = None
        if not isinstance(self.layer, str | None):  # of None, `fit` gives the middle layer alone
            fixed = [int(n) for n in (self.layer if isinstance(self.layer, Iterable) else [self.layer])]
        if layers is None:
            layers = fixed if fixed and len(fixed) == features.shape[1] else range(features.shape[1])
        layers = list(layers)
        if fixed is not None and not set(fixed) <= set(layers):
            raise InputError(f"expected layers among {layers}, whose features are given, got {fixed}", argument="layer")
        columns = {"mean" if self.pooling == "best" else self.pooling: slice(None)} if columns is None else columns
        folds = folds_of(numbers, self.seed)
        choices = [[layer] for layer in layers] if fixed is None else [fixed]
        self.trials_, self.sweep_, lowest = [], {}, np.inf
        self.layers_, self.pooling_ = choices[len(choices) // 2], next(iter(columns))
        self.strength_: float | None = MIDDLE_STRENGTH
        for pooling in columns if folds else ():
            best = []
            for choice in choices:
                values = _chosen(features, layers, choice, columns[pooling])
                trials = [
                    trial | {"layers": choice, "pooling": pooling}
                    for trial in cross_validate(values, numbers, folds, self.strengths)
                ]
                self.trials_ += trials
                best.append(best_trial(trials))
            chosen = best[middle_best([-trial["held_out_log_loss"] for trial in best])]
            if chosen["held_out_log_loss"] < lowest:
                lowest = chosen["held_out_log_loss"]
                self.layers_, self.pooling_, self.strength_ = chosen["layers"], pooling, chosen["strength"]
                self.sweep_ = {t["layers"][0]: t["held_out_accuracy"] for t in best if len(t["layers"]) == 1}
        values = self.chosen_features(features, layers, columns)
        calibration = calibrate(values, numbers, folds, self.strength_) if folds else None
        self.linear_, self.temperature_ = fit_linear(values, numbers, self.strength_), None
        if calibration is not None:
            self.linear_, self.temperature_ = self.linear_.calibrated(*calibration), calibration[0]
        return self

    def chosen_features(
        self, features: NDArray[np.float32], layers: Sequence[int], columns: dict[Pooling, slice] | None = None
    ) -> NDArray[np.float32]:
        """Of features (N, J, D) as in fit_features, those that this probe takes: `layers_` and `pooling_`, (N, D)."""
        return _chosen(features, layers, self.layers_, slice(None) if columns is None else columns[self.pooling_])

    @classmethod
    def of(cls, model: ImageGPT) -> LinearProbe:
        """The class head of a fine-tuned model as a linear probe of the layer that it reads.

        Raises InputError for a model without a class head.
        """
        if model.class_head is None:
            raise InputError(
                "this model was trained without labels and has no classes; fit a probe to labelled images "
                "(nextpixel probe LABELLED `out=probe`) or fine-tune it on them (nextpixel finetune LABELLED "
                "`out=runs/clf`)"
            )
        pooling, layer = model.config.class_pooling, model.config.class_layer or model.config.layers
        probe, width = cls(model, layer, pooling=pooling), model.config.pooled_width(pooling)
        probe.pooling_ = pooling
        probe.layers_, probe.trials_, probe.sweep_ = [layer], [], {}
        probe.strength_ = probe.temperature_ = None
        probe.classes_ = np.array(model.config.classes)
        weight, bias = model.class_head.weight, model.class_head.bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        parts = (part.detach().float().cpu().numpy() for part in (weight, bias))
        probe.linear_ = Linear(np.zeros(width, np.float32), np.ones(width, np.float32), *parts)
        return probe

    def predict_proba(self, images: Any, *, split: str | None = None, masks: int = 0) -> NDArray[np.float32]:
        """Probabilities (N, C), columns in the order of `classes_`; with `masks`, means, see predictions."""
        return self.predictions(self._squares(images, split), masks=masks)[0]

    def predict(self, images: Any, *, split: str | None = None, masks: int = 0) -> NDArray[Any]:
        """The most probable class of each image, (N,); with `masks`, the majority vote."""
        _, found = self.predictions(self._squares(images, split), masks=masks)
        return self.classes_[found]

    def features(self, squares: NDArray[np.uint8], dtype: str = "fp32") -> NDArray[np.float32]:
        """Features (N, D) of squares at the model's side, as proba_of takes them."""
        self._check_fitted()
        how: dict[str, Any] = {"dtype": dtype, "poolings": [self.pooling_], "mirror": self.mirror}
        found = features_of(self._model(), squares, self.layers_, **how)
        return found.reshape(len(squares), -1)

    def predictions(
        self,
        squares: NDArray[np.uint8],
        *,
        masks: int = 0,
        dtype: str = "fp32",
        features: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(probabilities (N, C), indices into `classes_` (N,)) of squares at the model's side.

        The class is the most probable one after calibration, which is also what is scored. A masked model can be
        evaluated `masks` times with different pixels hidden: probabilities are then means, the class is the majority
        vote (Chen et al. 2020 use five masks). Ties are broken at random; they and the masks depend on `seed` and the
        image's index. `features` (N, D) are those of `features`, where they are known. Raises InputError for masks with
        a model that is not masked.
        """
        model = self._model()
        if not masks:
            probabilities = self.proba_of(self.features(squares, dtype) if features is None else features)
            return probabilities, likeliest(probabilities, self.seed)
        if isinstance(model, ResNet) or model.config.objective != "masked":
            kind = "student" if isinstance(model, ResNet) else f"model of the {model.config.objective} objective"
            raise InputError(
                f"expected none for a {kind}, got {masks}; only masked models were trained with hidden pixels",
                argument="masks",
            )
        views = [model.tokenizer.encode(np.ascontiguousarray(squares))]
        views += [model.tokenizer.encode(mirrored(squares))] if self.mirror else []

        def proba(mask_seed: int) -> NDArray[np.float32]:
            how: dict[str, Any] = {"dtype": dtype, "mask_seed": mask_seed, "poolings": [self.pooling_]}
            features = np.mean([pooled(model, tokens, self.layers_, **how) for tokens in views], 0)
            return self.proba_of(features.reshape(len(squares), -1))

        seeds = np.random.SeedSequence([self.seed, 0x3A5C]).generate_state(masks)
        stacked = np.stack([proba(int(seed)) for seed in seeds])  # (masks, N, C)
        return stacked.mean(0), majority(stacked.argmax(2), len(self.classes_), self.seed)

    def score(self, images: Any, labels: ArrayLike | None = None, *, split: str | None = None) -> float:
        """Accuracy, as of scikit-learn's classifiers."""
        return self.evaluate(images, labels, split=split).accuracy

    def evaluate(self, images: Any, labels: ArrayLike | None = None, *, split: str | None = None) -> Score:
        """Accuracy, top-5, AUC and confusion on test images."""
        model = self._model()
        fit, levels = self.fit_of_images or model.fit, self.levels.over(model.levels)
        source = sprites_of(open_source(images, split), model.size, fit, levels)
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
        """evaluate for squares at the model's side; `masks` as in predictions, `seen` as in stats.score_of."""
        numbers = class_numbers(labels, self.classes_)  # refuses bad labels before the long work
        probabilities, predicted = self.predictions(squares, masks=masks, dtype=dtype)
        return score_of(probabilities, numbers, len(self.classes_), predicted, seen)

    def evaluate_features(
        self, features: NDArray[np.float32], labels: ArrayLike, *, seen: NDArray[np.bool_] | None = None
    ) -> Score:
        """evaluate for features (N, D) of `layers_`."""
        numbers = class_numbers(labels, self.classes_)
        probabilities = self.proba_of(features)
        return score_of(probabilities, numbers, len(self.classes_), likeliest(probabilities, self.seed), seen)

    def proba_of(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (N, C) from features (N, D) of `layers_`."""
        from scipy.special import softmax

        self._check_fitted()
        probabilities: NDArray[np.float32] = softmax(self.linear_.logits(features), axis=1)
        return probabilities

    def save(self, folder: str | Path, *, model_name: str) -> None:
        """Write the probe into a new folder: probe.json and probe.npz, no pickle; `model_name` loads its model."""
        with new_folder(new_output(folder, "folder")) as part:
            with (part / "probe.npz").open("wb") as file:
                np.savez(file, **vars(self.linear_))
            write_json(
                part / "probe.json",
                {
                    "model": model_name,
                    "fit": self.fit_of_images or self._model().fit,
                    **self.levels.over(self._model().levels).values(),
                    "palette": tokenizer_hash(self._model()),
                    "weights": model_hash(self._model(), torch.bfloat16),  # the same for those loaded in bf16
                    "layers": self.layers_,
                    "pooling": self.pooling_,
                    "mirror": self.mirror,
                    "strength": self.strength_,
                    "temperature": self.temperature_,
                    "classes": self.classes_.tolist(),
                    "sweep": {str(layer): accuracy for layer, accuracy in self.sweep_.items()},
                    "seed": self.seed,
                },
            )

    @classmethod
    def load(cls, folder: str | Path, model: Backbone) -> LinearProbe:
        """Read a saved probe, given the model it was fitted with.

        Raises InputError for a folder without a probe, or for another model.
        """
        facts = read_json(Path(folder) / "probe.json")
        try:
            layers = check_layers(model, facts["layers"])
            pooling, mirror = facts.get("pooling", "mean"), facts.get("mirror", False)  # older probes have no others
            ours = tokenizer_hash(model), len(layers) * pooled_width(model, pooling)
            probe, name = cls(model, layers, seed=facts["seed"], pooling=pooling, mirror=mirror), facts["model"]
            if not isinstance(mirror, bool):
                raise ValueError(f"the value {mirror!r} of mirror")
            probe.pooling_ = pooling
            probe.levels, probe.fit_of_images = Levels.among(facts), facts.get("fit")
            if probe.fit_of_images is not None:
                check_fit(probe.fit_of_images, model.tokenizer.channels if isinstance(model, ImageGPT) else 3)
            probe.layers_, probe.trials_, probe.strength_ = layers, [], facts["strength"]
            probe.temperature_ = facts.get("temperature")  # older probes are not calibrated
            probe.classes_ = np.asarray(facts["classes"])
            probe.sweep_ = {int(layer): accuracy for layer, accuracy in facts["sweep"].items()}
            with open_arrays(Path(folder) / "probe.npz") as arrays:
                probe.linear_ = Linear(*(arrays[name] for name in ("mean", "scale", "weight", "bias")))
            shapes = [array.shape for array in vars(probe.linear_).values()]
            rows, width = probe.linear_.weight.shape
            if [*shapes, probe.classes_.shape] != [(width,), (width,), (rows, width), (rows,), (rows,)]:
                raise ValueError(f"{probe.classes_.size} classes for arrays of {shapes}")
            theirs = facts["palette"], width
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{folder}: expected a saved probe, got a problem with {error}") from None
        for part, array in vars(probe.linear_).items():
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise InputError(f"{folder}: {part}: expected finite numbers, got {array.dtype} with others among them")
        if ours != theirs:
            raise InputError(f"{folder}: this probe was fitted with another model, {name!r}; load that one")
        half = next(model.parameters()).dtype == torch.float16  # which rounds other weights alike
        if not half and facts.get("weights") not in (None, model_hash(model, torch.bfloat16)):  # older ones have none
            raise InputError(
                f"{folder}: this probe was fitted with other weights than those that {name!r} has now, or with another "
                "model; fit it again"
            )
        return probe

    def _squares(self, images: Any, split: str | None) -> NDArray[np.uint8]:
        model = self._model()
        fit, levels = self.fit_of_images or model.fit, self.levels.over(model.levels)
        return load_images(images, model.size, split=split, fit=fit, levels=levels)

    def _check_fitted(self) -> None:
        if not hasattr(self, "linear_"):
            raise InputError("this probe is not fitted yet; call fit with labelled images first")

    def _model(self) -> Backbone:
        if self.model is None:
            raise ValueError("this probe has no model; it can only be used with features")
        return self.model


def _chosen(
    features: NDArray[np.float32], layers: Sequence[int], chosen: Sequence[int], columns: slice
) -> NDArray[np.float32]:
    """These layers and columns of features (N, J, D) of `layers`, side by side."""
    places = list(range(len(layers))) if list(chosen) == list(layers) else [layers.index(layer) for layer in chosen]
    return features[:, places, columns].reshape(len(features), -1)
