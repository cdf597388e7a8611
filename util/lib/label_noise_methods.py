"""Methods of others that find wrong labels without any verified row, each from the formula of its paper.

They score some `rows` of a data set, and use all of it. What they share:

    features    float32 [N, D]; `unit`: the same with rows of length 1; `standardised`: each number of mean 0 and variance 1
    ids         int [N], the given classes, ascending as in all.npy
    rows        int [n], ascending, the rows whose scores are asked for
    scores      float [n], higher = more probably correct; {setting: scores} where a setting is to be chosen

Memory is a block at a time beside the features. The thresholds of the papers are left out, but for SimiFeat's noise rates, since
compare_methods.py chooses one for every method alike. A module of its own because compare_methods.py tells what is compared and how it
is measured, and this what the methods are.
"""
import numpy as np
from scipy import optimize, sparse, special
from sklearn.decomposition import PCA
from tqdm import tqdm

from util.lib import arrays, neighbours

BLOCK = 16384  # rows at once
HISTOGRAM = 10  # nearest rows of a label histogram, SimiFeat's default
NOISE_ROWS, NOISE_CLASSES = 20_000, 1000  # of noise rates, at most: random rows beside those asked for, and classes
NOISE_ROUNDS, NOISE_TOLERANCE = 100, 1e-4  # steps to the rates; a smaller change ends them before
NOISE_BLOCK = 4096  # rows at once in these steps
POWER_STEPS = 20  # of FINE's singular vector
COMPONENTS = (2, 8, 32)  # of a class's PCA
GRAPH_ROWS = 20_000  # rows of the relation graph, at most, drawn at random
GRAPH_NEIGHBOURS, GRAPH_POWERS, GRAPH_ROUNDS = 50, (1, 4), 3
EPOCHS = (5, 10, 20)  # after which the margins of a training may be averaged
BATCH, LEARNING_RATE, MOMENTUM = 128, 1e-3, 0.9  # of that training
LOGISTIC_STEPS, LOGISTIC_TOLERANCE = 200, 1e-4  # at most; of the largest number of the gradient


def margin(scores, ids):
    """The score of the given class minus the highest of another class: float [n, C], int [n] -> float [n]."""
    here, others = np.arange(len(ids)), scores.copy()
    others[here, ids] = -np.inf
    return scores[here, ids] - others.max(axis=1)


def class_slices(ids):
    """[(class id, slice of its rows)] of the classes that have rows. ids: int [N], ascending."""
    found, first = np.unique(ids, return_index=True)
    return [(int(c), slice(start, end)) for c, start, end in zip(found, first.tolist(), [*first[1:].tolist(), len(ids)])]


def simifeat(nearest_ids, given):
    """SimiFeat (Zhu et al., ICML 2022) on the label histogram h of the HISTOGRAM nearest rows.

    vote: 1 where no class is more frequent in h than the given one, else 0.
    rank: h[given] / |h|, the cosine of h and the given class. (-log of the given class's share would order rows as the share itself.)

    Args:
        nearest_ids: int [n, k], given classes of the nearest rows, the nearest first. given: int [n].

    Returns:
        (vote, rank), float [n] each.
    """
    nearest_ids = nearest_ids[:, :HISTOGRAM]
    own = (nearest_ids == given[:, None]).sum(axis=1, dtype=np.float32)  # [n]
    # h of the class of each nearest row, [n, k]: its sum is |h|^2. The whole h, [n, C], would be large.
    alike = (nearest_ids[:, :, None] == nearest_ids[:, None]).sum(axis=2, dtype=np.float32)
    return (own >= alike.max(axis=1)).astype(np.float64), own / np.sqrt(alike.sum(axis=1))


def below_noise_rates(scores, nearest_ids, given, num_classes):
    """SimiFeat's verdicts by its noise rates: 0 for the lowest scores of each class, as many as noise_rates() says, else 1.

    Of equal scores the first rows are the lowest. Args: scores: float [n], SimiFeat's rank; the others, and what returns, as in simifeat.
    """
    rates, kept = noise_rates(np.column_stack([given, nearest_ids[:, :2]]), num_classes), np.ones(len(given))
    for rate, rows in zip(rates, arrays.rows_by_class(given, num_classes)):
        kept[rows[np.argsort(scores[rows], kind="stable")[: round(rate * len(rows))]]] = 0
    return kept


def noise_rates(triples, num_classes):
    """The share of mislabeled rows of each class, by the agreement of two neighbours (Zhu et al., ICML 2021): float32 [C].

    A row and its two nearest are taken to have one true class k, and each of them to be labelled c with probability T[k, c]. T and the
    prior of the classes are those that make the triples most likely, found by expectation maximisation, in NOISE_ROUNDS at most. (The
    paper fits them to frequencies of pairs and triples, of which there are C^3.) Takes some C x C numbers.

    Args:
        triples: int [n, 3], the given classes of rows and of their two nearest; of one, if there are only two rows.
    """
    shape = len(triples), num_classes
    transition = np.full((num_classes, num_classes), 0.3 / num_classes, np.float32) + 0.7 * np.eye(num_classes, dtype=np.float32)
    prior, rates = np.full(num_classes, 1 / num_classes, np.float32), np.zeros(num_classes)
    starts = np.arange(0, triples.size + 1, triples.shape[1])
    labels = sparse.csr_matrix((np.ones(triples.size, np.float32), triples.ravel(), starts), shape)  # how often each, [n, C]
    for _ in tqdm(range(NOISE_ROUNDS), desc="noise rates", unit="step", disable=None):
        counts, log_transition = np.full((num_classes, num_classes), 1e-6, np.float32), np.log(transition).T  # [given, true]
        for first in range(0, len(triples), NOISE_BLOCK):
            part = labels[first : first + NOISE_BLOCK]
            counts += part.T @ special.softmax(part @ log_transition + np.log(prior), axis=1)
        before, rates = rates, 1 - np.diag(counts) / counts.sum(axis=1)
        if np.abs(rates - before).max() < NOISE_TOLERANCE:
            break
        prior, transition = counts.sum(axis=0) / counts.sum(), (counts / counts.sum(axis=0)).T
    return rates


def distance_ratio(unit, ids, rows):
    """SelfClean's score of label errors (Groeger et al., 2023): d_other^2 / (d_same^2 + d_other^2).

    d is the distance, 1 - cosine, to the nearest row of the same and of another class; 2, the largest, where there is none.
    """
    scores = np.empty(len(rows))
    for start, similarity in neighbours.similarities(unit, rows, np.arange(len(unit)), "nearest row of each kind"):
        part = slice(start, start + len(similarity))
        same = ids[rows[part]][:, None] == ids[None, :]  # [B, N]
        nearest = (np.where(kind, similarity, -1).max(axis=1).astype(np.float64) for kind in (same, ~same))
        d_same, d_other = (np.maximum(1 - cosine, 1e-9) for cosine in nearest)
        scores[part] = d_other**2 / (d_same**2 + d_other**2)
    return scores


def fine(unit, ids, rows):
    """FINE (Kim et al., NeurIPS 2021): the squared cosine of a row with the first singular vector of its class's rows."""
    scores = np.empty(len(rows))
    for c, part in tqdm(class_slices(ids), desc="FINE", unit="class", disable=None):
        asked = ids[rows] == c
        first = unit[part].sum(axis=0)
        for _ in range(POWER_STEPS):  # the power method, from the sum of the rows, which is close already
            first = unit[part].T @ (unit[part] @ first)
            first /= max(np.linalg.norm(first), 1e-12)
        scores[asked] = (unit[rows[asked]] @ first) ** 2
    return scores


def reconstruction_ratios(features, ids, rows, seed):
    """Reconstruction error ratio (Marks et al., 2024), with a PCA per class for an autoencoder.

    The lowest error that the PCA of another class makes on a row, divided by that of its given class.

    Returns:
        {number of components: scores}.
    """
    own = {q: np.ones(len(rows)) for q in COMPONENTS}
    other = {q: np.full(len(rows), np.inf) for q in COMPONENTS}
    x = features[rows]
    squares = np.einsum("nd,nd->n", x, x)
    for c, part in tqdm(class_slices(ids), desc="PCA", unit="class", disable=None):
        count, is_own = min(COMPONENTS[-1], part.stop - part.start, features.shape[1]), ids[rows] == c
        pca = PCA(count, svd_solver="randomized", random_state=seed).fit(features[part])
        explained = np.cumsum((x @ pca.components_.T - pca.mean_ @ pca.components_.T) ** 2, axis=1)  # [n, count]
        length = squares - 2 * x @ pca.mean_ + pca.mean_ @ pca.mean_  # |x - mean|^2
        for q in COMPONENTS:
            error = np.maximum(length - explained[:, min(q, count) - 1], 1e-9)
            own[q][is_own] = error[is_own]
            other[q][~is_own] = np.minimum(other[q], error)[~is_own]
    return {q: other[q] / own[q] for q in COMPONENTS}


def relation_scores(unit, ids, rows, seed):
    """A relation graph (Kim et al., NeurIPS 2023) of the nearest rows, without the network's predictions.

    r_ij = k_ij where rows i and j have the same class, -k_ij where not; k_ij = max(0, cosine)^power. A row's score is the sum of its
    r_ij over the rows j that are not taken for mislabeled. These are found in rounds: at first none, then those whose score is below
    that of half of all rows. The graph is of GRAPH_ROWS rows, at most.

    Returns:
        {power: scores}.
    """
    pool = np.sort(np.random.default_rng(seed).permutation(len(unit))[:GRAPH_ROWS])
    most = min(GRAPH_NEIGHBOURS, len(pool) - 1)
    signed, place = {}, {}
    for name, of in (("pool", pool), ("rows", rows)):
        nearest, cosine = neighbours.nearest_with_cosine(unit, of, pool, most)
        signed[name] = np.where(ids[nearest] == ids[of][:, None], 1, -1), np.maximum(cosine, 0)
        place[name] = np.searchsorted(pool, nearest)
    found = {}
    for power in GRAPH_POWERS:
        relation = {name: sign * kernel**power for name, (sign, kernel) in signed.items()}
        clean = np.ones(len(pool))
        for _ in range(GRAPH_ROUNDS):
            scores = (relation["pool"] * clean[place["pool"]]).sum(axis=1)
            clean = (scores >= np.median(scores)).astype(np.float64)
        found[power] = (relation["rows"] * clean[place["rows"]]).sum(axis=1)
    return found


def training_margins(standardised, ids, rows, num_classes, seed):
    """Margins of the given class while a softmax layer is trained on all given labels, averaged over epochs.

    AUM, the area under the margin (Pleiss et al., NeurIPS 2020): the mean over the epochs of logit[given] - the largest other logit.
    Averaged margin: the same difference of log-probabilities that were averaged over the epochs first.
    The layer is trained by SGD with momentum; a row's logits are those before the step that it takes part in.

    Returns:
        ({epochs: AUM}, {epochs: averaged margin}).
    """
    rng = np.random.default_rng(seed)
    weights, velocity = (np.zeros((standardised.shape[1] + 1, num_classes), np.float32) for _ in range(2))  # the last is the bias
    place = np.full(len(ids), -1)
    place[rows] = np.arange(len(rows))
    area, log_sum = np.zeros(len(rows)), np.zeros((len(rows), num_classes), np.float32)
    areas, margins = {}, {}
    for epoch in tqdm(range(1, EPOCHS[-1] + 1), desc="softmax on all labels", unit="epoch", disable=None):
        order = rng.permutation(len(ids))
        for start in range(0, len(ids), BATCH):
            part = order[start : start + BATCH]
            x, given = standardised[part], ids[part]
            logits = x @ weights[:-1] + weights[-1]  # [B, C]
            log_p = special.log_softmax(logits, axis=1)
            asked = place[part] >= 0
            area[place[part][asked]] += margin(logits[asked], given[asked])
            log_sum[place[part][asked]] += log_p[asked]
            slope = gradient_of_logits(log_p, given) / len(part)
            velocity = MOMENTUM * velocity + np.concatenate([x.T @ slope, slope.sum(axis=0)[None]])
            weights -= LEARNING_RATE * velocity
        if epoch in EPOCHS:
            areas[epoch], margins[epoch] = area / epoch, margin(log_sum / epoch, ids[rows])
    return areas, margins


def gradient_of_logits(log_p, ids):
    """The gradient of each row's cross-entropy by its logits: log-probabilities float32 [n, C], int [n] -> float32 [n, C]."""
    slope = np.exp(log_p)
    slope[np.arange(len(ids)), ids] -= 1
    return slope


def fit_logistic(standardised, ids, fit_on, inverse_penalty, start):
    """Fits a multinomial logistic regression by L-BFGS: scikit-learn's objective, in float32, which is several times as fast.

    Args:
        fit_on: bool [N], the rows to fit. inverse_penalty: C of scikit-learn. start: float32 [D + 1, C], the weights to start from; the
            last is the bias, which has no penalty.

    Returns:
        The weights, float32 [D + 1, C].
    """
    count, num_classes = int(fit_on.sum()), start.shape[1]

    def loss(flat):
        weights = flat.reshape(-1, num_classes).astype(np.float32)
        total, gradient = 0.0, np.zeros(weights.shape)
        for first in range(0, len(ids), BLOCK):
            part = slice(first, first + BLOCK)
            log_p = special.log_softmax(standardised[part] @ weights[:-1] + weights[-1], axis=1)
            total -= log_p[np.arange(len(log_p)), ids[part]][fit_on[part]].sum(dtype=np.float64)
            slope = gradient_of_logits(log_p, ids[part]) * fit_on[part, None]
            gradient += np.concatenate([standardised[part].T @ slope, slope.sum(axis=0)[None]])
        penalised = flat.reshape(-1, num_classes) * (np.arange(len(weights)) < len(weights) - 1)[:, None]
        total += (penalised**2).sum() / (2 * inverse_penalty)
        return total / count, ((gradient + penalised / inverse_penalty) / count).ravel()

    options = {"maxiter": LOGISTIC_STEPS, "gtol": LOGISTIC_TOLERANCE, "ftol": 64 * np.finfo(float).eps}
    found = optimize.minimize(loss, start.astype(np.float64).ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(start.shape).astype(np.float32)


def class_probabilities(standardised, rows, weights):
    """Probabilities of some rows, int [n], by the weights of fit_logistic: float32 [n, C]."""
    parts = (standardised[rows[first : first + BLOCK]] for first in range(0, len(rows), BLOCK))
    return np.concatenate([special.softmax(x @ weights[:-1] + weights[-1], axis=1) for x in parts])


def self_confidence(probabilities, ids):
    """The probability of the given class: float [n, C], int [n] -> float [n]."""
    return probabilities[np.arange(len(ids)), ids]
