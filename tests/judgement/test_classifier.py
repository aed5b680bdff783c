"""The classifier against scikit-learn's, and against writing it down."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from biomass.judgement import classifier
from biomass.judgement.classifier import coordinates, folds, predict


def clouds(count=240, features=6, classes=5, spread=0.8, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % classes)
    centres = spread * generator.normal(size=(classes, features))
    x = (generator.normal(size=(count, features)) + centres[labels]) @ generator.normal(size=(features, features))
    return (x + 7).astype(np.float32), labels


def test_without_shrinkage_it_is_linear_discriminant_analysis(monkeypatch):
    monkeypatch.setattr(classifier, "_WELLS", 1e9)
    x, labels = clouds()
    fold = np.random.default_rng(1).permutation(np.arange(len(x)) % 4)
    shuffle = np.random.default_rng(2).permutation(labels)
    found = predict(x, np.stack([labels, shuffle]), fold)
    for way, given in enumerate((labels, shuffle)):
        expected = np.empty_like(given)
        for k in range(4):
            model = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(5, 0.2))
            expected[fold == k] = model.fit(x[fold != k], given[fold != k]).predict(x[fold == k])
        assert (found[way] == expected).mean() > 0.99
    assert 0.4 < (found[0] == labels).mean() < 0.9


@pytest.mark.parametrize(("count", "features"), [(120, 5), (60, 90)])
def test_it_is_what_the_formula_says(count, features):
    x, labels = clouds(count, features, classes=3, spread=0.3)
    labels[:20] = 0  # classes of unlike size
    rows, columns = np.arange(count) % 3, np.arange(count) // 3 % 2
    z = coordinates(x).astype(float)
    share = 1 - features / (features + 30 * count)
    expected = np.empty(count, int)
    for i in range(count):
        train = (rows != rows[i]) & (columns != columns[i])
        centred = z - z[train].mean(0)
        counts = np.array([(labels[train] == k).sum() for k in range(3)])
        means = np.array([centred[train & (labels == k)].mean(0) for k in range(3)])
        total = np.cov(centred[train].T, bias=True)
        between = (means.T * counts) @ means / counts.sum()
        within = share * (total - between) + (1 - share) * np.trace(total) / features * np.eye(features)
        scores = centred[i] @ np.linalg.solve(within, means.T)
        expected[i] = (scores - 0.5 * np.diag(means @ np.linalg.solve(within, means.T))).argmax()
    assert (predict(x, labels[None], rows, columns)[0] == expected).mean() > 0.98


def test_what_is_asked_is_not_in_training():
    """Every family of wells has a mark of its own; in training, it would tell the label."""
    generator = np.random.default_rng(0)
    family = np.arange(200) // 2
    labels = generator.permutation(np.arange(100) % 2)[family]
    x = generator.normal(size=(100, 50))[family].astype(np.float32)
    apart = (predict(x, labels[None], folds(family, 5, 0))[0] == labels).mean()
    together = (predict(x, labels[None], np.arange(200) % 2)[0] == labels).mean()
    assert apart < 0.65
    assert together > 0.75
    crossed = (predict(x, labels[None], np.arange(200) % 2, folds(family, 5, 0))[0] == labels).mean()
    assert crossed < 0.65


def test_a_label_that_no_other_well_has_cannot_be_told():
    x, labels = clouds(60, classes=3)
    labels[:3] = 3, 4, 4
    found = predict(x, labels[None], np.array([0, 1, 2] * 20))[0]
    assert found[0] == -1
    assert (found[1:] >= 0).all()
    nothing = predict(np.ones((6, 3), np.float32), np.array([[0, 1, 0, 1, 0, 1]]), np.array([0, 0, 1, 1, 2, 2]))
    assert (nothing == nothing[0, 0]).all()


def test_folds_keep_units_together_and_are_alike_in_size():
    units = np.repeat(np.arange(10), [9, 1, 1, 2, 3, 3, 3, 4, 7, 7])
    fold = folds(units, 3, seed=3)
    assert len({*zip(units, fold, strict=True)}) == 10
    assert np.bincount(fold).max() - np.bincount(fold).min() <= 1
    assert (folds(units, 3, seed=4) != fold).any()
    assert folds(np.array([3, 3]), 5, 0).tolist() == [0, 0]


def test_many_features_become_their_components(monkeypatch):
    x, _ = clouds(50, 40)
    x[:, 7] = 3
    full = coordinates(x)
    assert full.shape == (50, 39)
    np.testing.assert_allclose(full.std(0), 1, rtol=1e-4)
    monkeypatch.setattr(classifier, "FEATURES", 30)
    few = coordinates(x[:20])
    assert few.shape == (20, 20)
    monkeypatch.setattr(classifier, "FEATURES", 50)
    np.testing.assert_allclose(few @ few.T, coordinates(x[:20]) @ coordinates(x[:20]).T, atol=1e-2)
