"""The batched probe against plain loops of torch.nn.Linear and torch.optim, and the protocols around it."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold

from carl_hf.evaluation import senteval
from carl_hf.evaluation.senteval import (
    FAST_PROTOCOL,
    TEST_PROTOCOL,
    Protocol,
    nested_kfold,
    split_probe,
    train_probes,
)

PROTOCOLS = pytest.mark.parametrize("protocol", [TEST_PROTOCOL, FAST_PROTOCOL], ids=["test", "fast"])


def noisy_texts(seed, size=400, width=6, classes=3, noise=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=size)
    return rng.normal(size=(classes, width))[labels] + noise * rng.normal(size=(size, width)), labels


def clusters(seed, size=120, width=48, classes=2):
    """Each class has features of its own, far from zero."""
    labels = np.arange(size) % classes
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, size=(size, width))
    return noise + 4 * (np.arange(width) % classes == labels[:, None]), labels


def plain_probe(features, labels, classes, train, dev, l2, protocol, seed):
    """SentEval's loop for one probe: weights (H, C) and biases of the best round, its accuracy, rounds trained."""
    x, y = torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = torch.nn.Linear(x.shape[1], classes)
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())  # the shuffles go on where the initialisation ended
    if protocol.optimizer == "adam":
        optimizer = torch.optim.Adam(probe.parameters(), lr=1e-3, weight_decay=l2)
    else:
        optimizer = torch.optim.RMSprop(probe.parameters(), lr=1e-2, weight_decay=l2)
    best, kept, failures, epochs = -1.0, None, 0, 0
    while epochs < protocol.max_epochs:
        for _ in range(protocol.epoch_size):
            order = train[torch.randperm(len(train), generator=generator).numpy()]
            for i in range(0, len(order), protocol.batch_size):
                batch = order[i : i + protocol.batch_size]
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(probe(x[batch]), y[batch]).backward()
                optimizer.step()
        epochs += protocol.epoch_size
        accuracy = (probe(x[dev]).argmax(1) == y[dev]).double().mean().item()
        if accuracy > best:
            best, kept = accuracy, (probe.weight.detach().T.clone(), probe.bias.detach().clone())
        elif failures >= protocol.tenacity:
            break
        else:
            failures += 1
    return *kept, 100 * best, epochs // protocol.epoch_size


@PROTOCOLS
@pytest.mark.parametrize("l2", [1e-5, 1e-2])
def test_one_probe_equals_linear_and_optimizer_of_torch(protocol, l2):
    features, labels = noisy_texts(0)
    train, dev = np.arange(300), np.arange(300, 400)  # the last batch is smaller than the others
    protocol = replace(protocol, max_epochs=5 * protocol.epoch_size)
    probes = train_probes(features, labels, 3, [train], [dev], [[l2]], protocol, seed=5)
    weights, biases, accuracy, _ = plain_probe(features, labels, 3, train, dev, l2, protocol, seed=5)
    torch.testing.assert_close(probes.weights[0, 0], weights, atol=1e-5, rtol=0)
    torch.testing.assert_close(probes.biases[0, 0], biases, atol=1e-5, rtol=0)
    assert probes.dev_accuracy[0, 0] == pytest.approx(accuracy, abs=1e-9)
    undecayed, *_ = plain_probe(features, labels, 3, train, dev, 0.0, protocol, seed=5)
    assert l2 < 1e-3 or (undecayed - weights).abs().max() > 1e-3  # the comparison would see a missing decay


# 130 and 128 rows: two folds of unequal size whose batches of 64 and 128 end unequally, 128 having no last batch where
# 130 has one of 2 rows; 250, 77: other numbers of batches altogether
SIZES = (130, 250, 128, 77)


def folds_of_unequal_size(features):
    rng = np.random.default_rng(1)
    orders = [rng.permutation(len(features)) for _ in SIZES]
    train = [order[:size] for order, size in zip(orders, SIZES, strict=True)]
    dev = [order[size : size + 60 + 7 * f] for f, (order, size) in enumerate(zip(orders, SIZES, strict=True))]
    return train, dev


@PROTOCOLS
@pytest.mark.parametrize("together", [4, 3, 1])
def test_unequal_folds_and_their_l2_values_equal_one_probe_at_a_time(protocol, together, monkeypatch):
    features, labels = noisy_texts(2)
    train, dev = folds_of_unequal_size(features)
    l2 = [[1e-5, 1e-2, 0.3], [1e-3, 0.1, 1e-4], [0.3, 1e-5, 1e-2], [1e-2, 1e-2, 1.0]]
    monkeypatch.setattr(senteval, "_GATHERED_BYTES", together * protocol.batch_size * 7 * 4)
    probes = train_probes(features, labels, 3, train, dev, l2, protocol, seed=3)
    assert probes.weights.shape == (4, 3, 6, 3) and probes.biases.shape == (4, 3, 3)
    rounds = []
    for f in range(4):
        for r in range(3):
            weights, biases, accuracy, trained = plain_probe(
                features, labels, 3, train[f], dev[f], l2[f][r], protocol, seed=3 + f
            )
            rounds.append(trained)
            torch.testing.assert_close(probes.weights[f, r], weights, atol=1e-5, rtol=0)
            torch.testing.assert_close(probes.biases[f, r], biases, atol=1e-5, rtol=0)
            assert probes.dev_accuracy[f, r] == pytest.approx(accuracy, abs=1e-9)
    # stopped by tenacity, at different rounds within a fold and between folds
    assert max(rounds) * protocol.epoch_size < protocol.max_epochs
    assert len(set(rounds[:3])) > 1 and len({max(rounds[f : f + 3]) for f in range(0, 12, 3)}) > 1


def test_a_fold_by_itself_is_the_same_as_among_others():
    features, labels = noisy_texts(4)
    train, dev = folds_of_unequal_size(features)
    together = train_probes(features, labels, 3, train, dev, [[1e-4, 1e-2]] * 4, FAST_PROTOCOL, seed=3)
    for f in range(4):
        for r, l2 in enumerate((1e-4, 1e-2)):
            alone = train_probes(
                features, labels, 3, train[f : f + 1], dev[f : f + 1], [[l2]], FAST_PROTOCOL, seed=3 + f
            )
            torch.testing.assert_close(alone.weights[0, 0], together.weights[f, r], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(alone.biases[0, 0], together.biases[f, r], atol=1e-5, rtol=1e-5)


def test_the_first_of_equal_rounds_is_kept():
    # dev texts without features, as many of each class: the accuracy is a third in every round
    features, labels = noisy_texts(6, size=399)
    features[300:], labels[300:] = 0.0, np.arange(99) % 3
    train, dev = np.arange(300), np.arange(300, 399)
    short = replace(TEST_PROTOCOL, max_epochs=TEST_PROTOCOL.epoch_size)
    first, last = (train_probes(features, labels, 3, [train], [dev], [[1e-5]], p) for p in (short, TEST_PROTOCOL))
    torch.testing.assert_close(last.weights, first.weights, atol=0, rtol=0)
    assert last.dev_accuracy[0, 0] == first.dev_accuracy[0, 0] == pytest.approx(100 / 3)


@PROTOCOLS
def test_clusters_are_all_predicted(protocol):
    features, labels = clusters(0, size=600, classes=3)
    result = nested_kfold(features, labels, protocol)
    assert result.accuracy == 100 and result.fold_accuracies == (100.0,) * protocol.folds
    np.testing.assert_array_equal(result.predictions, labels)

    split = split_probe(
        features[:400], labels[:400], features[400:500], labels[400:500], features[500:], protocol, classes=3
    )
    np.testing.assert_array_equal(split.predictions, labels[500:])
    assert split.dev_accuracy == 100 and split.l2 == 1e-5  # the first of equals


@PROTOCOLS
def test_shuffled_labels_give_chance(protocol):
    features, labels = clusters(1, size=400)
    features = np.concatenate([features, np.random.default_rng(1).normal(size=(400, 8))], axis=1)
    assert nested_kfold(features, labels, protocol).accuracy > 90
    shuffled = np.random.default_rng(0).permutation(labels)
    # 400 texts of two equal classes: four standard deviations of a binomial share are 100 * 4 * sqrt(.25 / 400) = 10
    assert abs(nested_kfold(features, shuffled, protocol).accuracy - 50) < 10


def test_nested_kfold_predicts_each_text_once_from_folds_of_its_own():
    features, labels = noisy_texts(7, size=150, classes=3)
    result = nested_kfold(features, labels, FAST_PROTOCOL, seed=9)
    outer = StratifiedKFold(5, shuffle=True, random_state=9).split(features, labels)
    accuracies = [100 * np.mean(result.predictions[test] == labels[test]) for _, test in outer]
    assert result.predictions.shape == (150,) and set(result.predictions) <= {0, 1, 2}
    assert result.fold_accuracies == pytest.approx(accuracies)
    assert result.accuracy == pytest.approx(np.mean(accuracies))
    assert 45 < result.accuracy < 100 and len(result.l2) == 5 and set(result.l2) <= set(FAST_PROTOCOL.l2)
    again = nested_kfold(features, labels, FAST_PROTOCOL, seed=9)
    assert again.l2 == result.l2 and (again.predictions == result.predictions).all()


def test_nested_kfold_chooses_by_inner_folds_and_refits_without_the_outer_fold():
    # outer fold by outer fold, with plain probes
    features, labels = noisy_texts(9, size=90, classes=2, noise=2.0)
    protocol = Protocol("small", folds=3, optimizer="rmsprop", batch_size=16, tenacity=1, epoch_size=1, l2=(1e-5, 1.0))
    result = nested_kfold(features, labels, protocol, seed=2)
    splitter = StratifiedKFold(3, shuffle=True, random_state=2)
    rng = np.random.default_rng(2)
    for fold, (rows, test) in enumerate(splitter.split(features, labels)):
        scores = np.zeros((3, 2))
        for i, (train, dev) in enumerate(splitter.split(features[rows], labels[rows])):
            for r, l2 in enumerate(protocol.l2):
                scores[i, r] = plain_probe(
                    features, labels, 2, rows[train], rows[dev], l2, protocol, 2 + 3 * fold + i
                )[2]
        chosen = protocol.l2[scores.mean(0).round(2).argmax()]
        assert result.l2[fold] == chosen
        dev, train = np.split(rng.permutation(rows), [3])  # 5 % of 60
        weights, biases, *_ = plain_probe(features, labels, 2, train, dev, chosen, protocol, 2 + fold)
        expected = (torch.tensor(features[test], dtype=torch.float32) @ weights + biases).argmax(1)
        np.testing.assert_array_equal(result.predictions[test], expected)
    assert len(set(result.l2)) == 2  # a choice was made


def test_split_probe_takes_the_l2_that_is_best_on_dev():
    features, labels = noisy_texts(19, size=300, classes=3, noise=2.0)
    protocol = replace(FAST_PROTOCOL, l2=(1.0, 1e-2, 1e-5))
    train, dev, test = np.split(np.arange(300), [150, 220])
    result = split_probe(
        features[train], labels[train], features[dev], labels[dev], features[test], protocol, classes=3
    )
    probes = [plain_probe(features, labels, 3, train, dev, l2, protocol, 1111) for l2 in protocol.l2]
    best = int(np.argmax([accuracy for _, _, accuracy, _ in probes]))
    weights, biases, accuracy, _ = probes[best]
    expected = (torch.tensor(features[test], dtype=torch.float32) @ weights + biases).argmax(1)
    assert best == 1 and result.l2 == protocol.l2[best] and result.dev_accuracy == pytest.approx(accuracy)
    np.testing.assert_array_equal(result.predictions, expected)


def test_the_protocols_are_the_published_ones():
    assert TEST_PROTOCOL == Protocol("test", 10, "adam", 64, 5, 4, (1e-5, 1e-4, 1e-3, 1e-2), 200)
    assert FAST_PROTOCOL == Protocol("fast", 5, "rmsprop", 128, 3, 2, (1e-5, 1e-4, 1e-3, 1e-2), 200)


def test_a_class_too_small_for_the_folds_is_named():
    features, labels = clusters(2, size=60)
    rare = (np.arange(60) < 7).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn warns of a class with fewer texts than folds
        assert nested_kfold(features, rare, FAST_PROTOCOL).predictions.shape == (60,)
    with pytest.raises(ValueError, match="Class 1 has 6 texts, nested 5-fold needs at least 7"):
        nested_kfold(features[1:], rare[1:], FAST_PROTOCOL)
    with pytest.raises(ValueError, match="Class 1 has 7 texts, nested 10-fold needs at least 12"):
        nested_kfold(features, rare, TEST_PROTOCOL)
    with pytest.raises(ValueError, match="Class 1 has 0 texts"):
        nested_kfold(features, 2 * labels, FAST_PROTOCOL)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_features_that_are_not_finite_are_refused(bad):
    features, labels = clusters(3, size=60)
    features[4, 2] = bad
    with pytest.raises(ValueError, match="1 of 60 texts .* first is row 4"):
        nested_kfold(features, labels, FAST_PROTOCOL)
    good = clusters(3, size=60)[0]
    with pytest.raises(ValueError, match="1 of 60 texts .* first is row 4"):
        split_probe(good, labels, good, labels, features, FAST_PROTOCOL, classes=2)


def test_labels_beyond_the_classes_empty_folds_and_unknown_optimizers_are_refused():
    features, labels = clusters(4, size=60, classes=3)
    rows = np.arange(60)
    with pytest.raises(ValueError, match="from 0 to 1, got 0 to 2"):
        train_probes(features, labels, 2, [rows], [rows], [[0.0]], FAST_PROTOCOL)
    with pytest.raises(ValueError, match="from 0, got -1 to 1"):
        nested_kfold(features, labels - 1, FAST_PROTOCOL)
    with pytest.raises(ValueError, match="from 0 to 2, got 0.5"):
        train_probes(features, labels + 0.5, 3, [rows], [rows], [[0.0]], FAST_PROTOCOL)
    with pytest.raises(ValueError, match="Fold 1 has no dev rows"):
        train_probes(features, labels, 3, [rows, rows], [rows, rows[:0]], [[0.0], [0.0]], FAST_PROTOCOL)
    with pytest.raises(ValueError, match="'adam' or 'rmsprop'"):
        replace(FAST_PROTOCOL, optimizer="sgd")
