"""The batched probes against plain loops of torch.nn.Linear and torch.optim, and the protocols around them."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold

from carl_hf.evaluation.senteval import PROTOCOLS, Protocol, nested_kfold, split_probe, train_fold, with_bias

FAST, TEST = PROTOCOLS["fast"], PROTOCOLS["test"]
BOTH_PROTOCOLS = pytest.mark.parametrize("protocol", [TEST, FAST], ids=["test", "fast"])


def noisy_texts(seed, size=400, width=6, classes=3, noise=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=size)
    return rng.normal(size=(classes, width))[labels] + noise * rng.normal(size=(size, width)), labels


def clusters(seed, size=120, width=48):
    """Two classes, each with features of its own, far from zero."""
    labels = np.arange(size) % 2
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, size=(size, width))
    return noise + 4 * (np.arange(width) % 2 == labels[:, None]), labels


def plain_probe(features, labels, classes, train, dev, l2, protocol, seed):
    """SentEval's loop for one probe: weights (C, I) of the best round, bias last, its accuracy, rounds trained."""
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
            best, kept = accuracy, torch.cat([probe.weight, probe.bias[:, None]], dim=1).detach()
        elif failures >= protocol.tenacity:
            break
        else:
            failures += 1
    return kept, 100 * best, epochs // protocol.epoch_size


def table(features, labels):
    return with_bias(features), torch.tensor(labels)


def plain_predictions(features, weights):
    return (torch.tensor(features, dtype=torch.float32) @ weights[:, :-1].T + weights[:, -1]).argmax(1)


# 130 and 128 rows: batches of 64 and 128 end unequally, 128 having no last batch where 130 has one of 2 rows; 250, 77:
# other numbers of batches altogether
SIZES = (130, 250, 128, 77)


@BOTH_PROTOCOLS
def test_folds_and_their_l2_values_equal_one_probe_at_a_time(protocol):
    features, labels = noisy_texts(2)
    orders = [np.random.default_rng(seed).permutation(len(features)) for seed in range(4)]
    train = [order[:size] for order, size in zip(orders, SIZES, strict=True)]
    dev = [order[size : size + 60 + 7 * f] for f, (order, size) in enumerate(zip(orders, SIZES, strict=True))]
    l2 = [[1e-5, 1e-2, 0.3], [1e-3, 0.1, 1e-4], [0.3, 1e-5, 1e-2], [1e-2, 1e-2, 1.0]]
    rounds = np.zeros((4, 3), dtype=int)
    for f in range(4):
        weights, accuracy = train_fold(*table(features, labels), 3, train[f], dev[f], l2[f], protocol, seed=3 + f)
        assert weights.shape == (3, 3, 7) and accuracy.shape == (3,)
        for r in range(3):
            plain = plain_probe(features, labels, 3, train[f], dev[f], l2[f][r], protocol, seed=3 + f)
            torch.testing.assert_close(weights[r], plain[0], atol=1e-5, rtol=0)
            assert accuracy[r] == pytest.approx(plain[1], abs=1e-9)
            rounds[f, r] = plain[2]
        assert (weights[l2[f].index(max(l2[f]))] - weights[l2[f].index(min(l2[f]))]).abs().max() > 1e-3  # weight decay
    # stopped by tenacity, at different rounds within a fold and between folds
    assert rounds.max() * protocol.epoch_size < protocol.max_epochs
    assert len(set(rounds[0])) > 1 and len(set(rounds.max(1))) > 1


def test_the_first_of_equal_rounds_is_kept():
    # dev texts without features, as many of each class: the accuracy is a third in every round
    features, labels = noisy_texts(6, size=399)
    features[300:], labels[300:] = 0.0, np.arange(99) % 3
    train, dev = np.arange(300), np.arange(300, 399)
    short = replace(TEST, max_epochs=TEST.epoch_size)
    first, last = (train_fold(*table(features, labels), 3, train, dev, [1e-5], p, seed=0) for p in (short, TEST))
    torch.testing.assert_close(last[0], first[0], atol=0, rtol=0)
    assert last[1] == first[1] == pytest.approx(100 / 3)


@BOTH_PROTOCOLS
def test_clusters_are_all_predicted_and_shuffled_labels_by_chance(protocol):
    features, labels = clusters(0, size=400)
    result = nested_kfold(features, labels, protocol)
    assert result.accuracy == 100 and result.l2 == (1e-5,) * protocol.folds  # the first of equals
    np.testing.assert_array_equal(result.predictions, labels)
    # 400 texts of two equal classes: four standard deviations of a binomial share are 100 * 4 * sqrt(.25 / 400) = 10
    shuffled = np.random.default_rng(0).permutation(labels)
    assert abs(nested_kfold(features, shuffled, protocol).accuracy - 50) < 10


def test_nested_kfold_chooses_by_inner_folds_and_fits_again_without_the_outer_fold():
    # outer fold by outer fold, with plain probes
    features, labels = noisy_texts(9, size=90, classes=2, noise=2.0)
    protocol = Protocol(folds=3, optimizer="rmsprop", batch_size=16, tenacity=1, epoch_size=1, l2=(1e-5, 1.0))
    result = nested_kfold(features, labels, protocol, seed=2)
    splitter = StratifiedKFold(3, shuffle=True, random_state=2)
    rng, accuracies = np.random.default_rng(2), []
    for fold, (rows, test) in enumerate(splitter.split(features, labels)):
        scores = np.zeros((3, 2))
        for i, (train, dev) in enumerate(splitter.split(features[rows], labels[rows])):
            for r, l2 in enumerate(protocol.l2):
                scores[i, r] = plain_probe(
                    features, labels, 2, rows[train], rows[dev], l2, protocol, 2 + 3 * fold + i
                )[1]
        chosen = protocol.l2[scores.mean(0).round(2).argmax()]
        assert result.l2[fold] == chosen
        dev, train = np.split(rng.permutation(rows), [3])  # 5 % of 60
        weights = plain_probe(features, labels, 2, train, dev, chosen, protocol, 2 + fold)[0]
        np.testing.assert_array_equal(result.predictions[test], plain_predictions(features[test], weights))
        accuracies.append(100 * np.mean(result.predictions[test] == labels[test]))
    assert result.accuracy == pytest.approx(np.mean(accuracies)) and len(set(result.l2)) == 2  # a choice was made


def test_split_probe_takes_the_l2_that_is_best_on_dev():
    features, labels = noisy_texts(19, size=300, classes=3, noise=2.0)
    protocol = replace(FAST, l2=(1.0, 1e-2, 1e-5))
    train, dev, test = np.split(np.arange(300), [150, 220])
    result = split_probe(features, labels, train, dev, test, protocol, classes=3)
    probes = [plain_probe(features, labels, 3, train, dev, l2, protocol, 1111) for l2 in protocol.l2]
    best = int(np.argmax([accuracy for _, accuracy, _ in probes]))
    assert best == 1 and result.l2 == (protocol.l2[best],)
    np.testing.assert_array_equal(result.predictions, plain_predictions(features[test], probes[best][0]))
    assert result.accuracy == pytest.approx(100 * np.mean(result.predictions == labels[test]))


def test_the_protocols_are_the_published_ones():
    assert TEST == Protocol(10, "adam", 64, 5, 4, (1e-5, 1e-4, 1e-3, 1e-2), 200)
    assert FAST == Protocol(5, "rmsprop", 128, 3, 2, (1e-5, 1e-4, 1e-3, 1e-2), 200)


def test_classes_too_small_for_the_folds_and_features_that_are_not_finite_are_refused():
    features, labels = clusters(2, size=60)
    rare = (np.arange(60) < 7).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn warns of a class with fewer texts than folds
        assert nested_kfold(features, rare, FAST).predictions.shape == (60,)
    with pytest.raises(ValueError, match="Class 1 has 6 texts, nested 5-fold needs at least 7"):
        nested_kfold(features[1:], rare[1:], FAST)
    with pytest.raises(ValueError, match="Class 1 has 0 texts"):
        nested_kfold(features, 2 * labels, FAST)
    for bad in (np.nan, np.inf, 1e300):
        features[4, 2] = bad
        with pytest.raises(ValueError, match="1 of 60 texts .* first is row 4"):
            nested_kfold(features, labels, FAST)
