"""Whether generated digits are digits, of every class, and not copies."""

from typing import NamedTuple

import numpy as np
import torch

from ..data.sources import digits


class DigitReport(NamedTuple):
    """What `judge` found."""

    accuracy: float  # of the classifier on held-out real digits
    shares: np.ndarray  # [10], of the samples by the class they are given
    confidence: float  # the classifier's mean probability of that class
    distance_ratio: float  # median distance to the nearest real digit: samples' over held-out digits'

    def convinces(self):
        """A classifier 97% right finds 4% to 20% of each class, is 90% sure on average, and they are no copies."""
        return bool(
            self.accuracy >= 0.97
            and self.shares.min() >= 0.04
            and self.shares.max() <= 0.2
            and self.confidence >= 0.9
            and self.distance_ratio >= 0.8
        )


def judge(samples, seed=0):
    """A classifier trained on five sixths of the real digits looks at samples, uint8 [N, 1, 8, 8].

    The classifier is a support vector machine with an RBF kernel and calibrated probabilities. Distances are Euclidean,
    pixels in [0, 1]: a sample's to the nearest of all real digits, for a generator may have seen them all; a held-out
    digit's to the nearest that the classifier was trained on.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import train_test_split
    from sklearn.svm import SVC

    found = _features(_checked(samples))
    images, labels = digits()
    real, labels = _features(images), labels.numpy()
    split = train_test_split(real, labels, test_size=1 / 6, random_state=seed, stratify=labels)
    train, held_out, train_labels, held_out_labels = split
    classifier = CalibratedClassifierCV(SVC(C=10, gamma=0.02, random_state=seed), ensemble=False, cv=5)
    classifier.fit(train, train_labels)
    probabilities = classifier.predict_proba(found)
    return DigitReport(
        accuracy=float(classifier.score(held_out, held_out_labels)),
        shares=np.bincount(probabilities.argmax(1), minlength=10) / len(found),
        confidence=float(probabilities.max(1).mean()),
        distance_ratio=float(np.median(_nearest(found, real)) / np.median(_nearest(held_out, train))),
    )


def _checked(samples):
    if not isinstance(samples, torch.Tensor) or samples.dtype is not torch.uint8:
        got = getattr(samples, "dtype", type(samples).__name__)
        raise ValueError(f"samples must be uint8 [N, 1, 8, 8], got {got}")
    if samples.dim() != 4 or samples.shape[1:] != (1, 8, 8) or len(samples) == 0:
        raise ValueError(f"samples must be uint8 [N, 1, 8, 8], got {list(samples.shape)}")
    return samples.cpu()


def _features(images):
    return images.reshape(len(images), -1).numpy().astype(np.float64) / 255


def _nearest(points, others):
    """Distance of each point to the nearest of the others."""
    squares = (points**2).sum(1)[:, None] - 2 * points @ others.T + (others**2).sum(1)
    return np.sqrt(np.maximum(squares, 0).min(1))
