"""Whether generated digits are digits, of every class, and not copies."""

from typing import NamedTuple

import numpy as np

from ..data.sources import digits


class DigitReport(NamedTuple):
    accuracy: float  # of the classifier on held-out real digits
    shares: np.ndarray  # [10], of the samples by the class they are given
    confidence: float  # the classifier's mean probability of that class
    distance_ratio: float  # median distance to the nearest training digit: samples' over held-out digits'


def judge(samples, seed=0):
    """A classifier trained on five sixths of the real digits looks at samples, uint8 [N, 1, 8, 8].

    The classifier is a support vector machine with an RBF kernel and calibrated probabilities, features in [0, 1].
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import train_test_split
    from sklearn.svm import SVC

    images, labels = digits()
    split = train_test_split(_features(images), labels.numpy(), test_size=1 / 6, random_state=seed, stratify=labels)
    train, held_out, train_labels, held_out_labels = split
    classifier = CalibratedClassifierCV(SVC(C=10, gamma=0.02, random_state=seed), ensemble=False, cv=5)
    classifier.fit(train, train_labels)
    found = _features(samples)
    probabilities = classifier.predict_proba(found)
    return DigitReport(
        accuracy=float(classifier.score(held_out, held_out_labels)),
        shares=np.bincount(probabilities.argmax(1), minlength=10) / len(found),
        confidence=float(probabilities.max(1).mean()),
        distance_ratio=float(np.median(_nearest(found, train)) / np.median(_nearest(held_out, train))),
    )


def _features(images):
    return images.reshape(len(images), -1).numpy().astype(np.float64) / 255


def _nearest(points, others):
    """Distance of each point to the nearest of the others."""
    squares = (points**2).sum(1)[:, None] - 2 * points @ others.T + (others**2).sum(1)
    return np.sqrt(np.maximum(squares, 0).min(1))
