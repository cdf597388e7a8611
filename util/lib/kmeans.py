"""k-means for reference features: the algorithm of cv2.kmeans, with all attempts computed together.

A module of its own because it is an algorithm with tests and a benchmark, apart from the command that uses it.

Each of ATTEMPTS attempts is seeded by k-means++ with TRIALS trials per centre and runs at most ITERATIONS iterations.
The attempt with the least within-class distance wins. This is faster than cv2.kmeans for three reasons: one matrix
product serves all attempts, those that fall behind are given up early, and an iteration adds up only the rows that
changed cluster. Eight attempts find what ten of cv2.kmeans find (tests/benchmark.py measures the distances).
"""
import numpy as np
from scipy import sparse
from threadpoolctl import ThreadpoolController

from util.lib import arrays

ATTEMPTS, ITERATIONS, TOLERANCE = 8, 50, 1e-4
TRIALS = 3  # candidates for a centre, of which the best is taken
KEPT = {2: 4, 5: 2}  # {iterations done: attempts that continue}; the order of the attempts hardly changes later
SMALL = 1 << 20  # numbers of a class up to which one thread multiplies: several wait for each other longer than they save
BLAS = ThreadpoolController()


def numpy_product(features):
    """A function from centres [K, D] to features @ centres.T, float32 [N, K], on the CPU."""
    return lambda centres: features @ centres.T


def tensorflow_product(features):
    """The same through TensorFlow, which keeps the features on a GPU if there is one."""
    import tensorflow as tf

    on_device = tf.constant(features)
    return lambda centres: tf.matmul(on_device, centres, transpose_b=True).numpy()


def find_references(features, class_ids, num_classes, num_ref, seed=1):
    """The references of all classes, for rows in memory; as util/find_reference.py finds them.

    Args:
        features: float32 [N, D]. class_ids: int [N], from 0 to num_classes - 1. num_ref: per class. seed: class c gets seed + c.

    Returns:
        float32 [num_classes, num_ref, D].
    """
    groups = arrays.rows_by_class(class_ids, num_classes)
    return np.stack([references_of_class(features[rows], num_ref, seed + c) for c, rows in enumerate(groups)])


def references_of_class(features, num_ref, seed, engine=None):
    """The references of one class.

    Args:
        features: float32 [N, D]. seed: int. engine: function of (features, num_ref, seed) that returns the centres; None: centres_of.

    Returns:
        float32 [num_ref, D]: the centres of k-means; for N <= num_ref the rows, repeated; for N = 0 zeros.
    """
    if not len(features):
        return np.zeros((num_ref, features.shape[1]), np.float32)
    if len(features) <= num_ref:
        return features[np.arange(num_ref) % len(features)]
    with BLAS.limit(limits=1 if features.size <= SMALL else None):
        return engine(features, num_ref, seed) if engine else centres_of(features, num_ref, seed)[0]


def centres_of(features, num_centres, seed, make_product=numpy_product):
    """Clusters features and returns the centres of the best attempt.

    Args:
        features: float32 [N, D], N > num_centres. seed: int. make_product: numpy_product or tensorflow_product.

    Returns:
        (centres, float32 [K, D]; the within-class distance, float: the sum over rows of squares to the nearest centre).
    """
    scale = _scale_of(features)
    if scale != 1:
        centres, distance = centres_of(features / scale, num_centres, seed, make_product)
        return centres * scale, distance * float(scale) ** 2
    rng = np.random.default_rng(seed)
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    features = features - mean  # far from the origin, |c|^2 - 2 x c would lose its digits
    product = make_product(features)
    norms = np.einsum("nd,nd->n", features, features)
    attempts = np.arange(ATTEMPTS)
    centres, nearest = _seed(features, num_centres, rng, product, norms)  # [A, K, D], [A, N]
    sums, counts = np.zeros_like(centres), np.zeros((ATTEMPTS, num_centres), np.int64)
    assigned = np.full((ATTEMPTS, len(features)), -1)
    for iteration in range(ITERATIONS):
        if iteration:
            nearest, distances = _nearest(centres[attempts], product)  # [A', N] twice
        if iteration in KEPT:
            ahead = np.sort(np.argsort(distances.sum(axis=1))[: KEPT[iteration]])
            attempts, nearest = attempts[ahead], nearest[ahead]
        moved = False
        for a, now in zip(attempts, nearest):
            changed = np.flatnonzero(now != assigned[a])
            _move(features, changed, assigned[a], now, sums[a], counts[a])
            _fill_empty(features, centres[a], assigned[a], sums[a], counts[a])
            means = sums[a] / counts[a][:, None]
            moved |= np.square(means - centres[a]).sum(axis=1).max() > TOLERANCE**2
            centres[a] = means
        if not moved:
            break
    distances = _nearest(centres[attempts], product)[1].sum(axis=1, dtype=np.float64) + norms.sum(dtype=np.float64)
    best = int(np.argmin(distances))
    return centres[attempts[best]] + mean, float(distances[best])


def _scale_of(features):
    """1, or what very large or small features are divided by, so that their squares neither overflow nor vanish: a power of 2."""
    largest = float(np.abs(features).max())
    if largest == 0 or 1e-6 < largest < 1e6:
        return np.float32(1)
    return np.float32(2.0 ** np.clip(np.floor(np.log2(largest)), -126, 126))


def _seed(features, num_centres, rng, product, norms):
    """k-means++ (Arthur and Vassilvitskii, 2007) for all attempts.

    Returns:
        (centres, float32 [A, K, D]; the nearest centre of every row, int [A, N]).
    """
    chosen = np.empty((ATTEMPTS, num_centres), np.int64)
    chosen[:, 0] = rng.integers(len(features), size=ATTEMPTS)
    closest = _distances_to_rows(features, chosen[:, 0], product, norms)  # [A, N]
    nearest = np.zeros(closest.shape, np.int64)
    for k in range(1, num_centres):
        cumulative = np.cumsum(closest, axis=1, dtype=np.float64)  # [A, N]
        draws = rng.random((ATTEMPTS, TRIALS)) * cumulative[:, -1:]
        candidates = np.stack([np.searchsorted(c, d, side="right") for c, d in zip(cumulative, draws)])  # [A, T]
        candidates = np.minimum(candidates, len(features) - 1)
        distances = _distances_to_rows(features, candidates.ravel(), product, norms).reshape(ATTEMPTS, TRIALS, -1)
        np.minimum(distances, closest[:, None], out=distances)  # [A, T, N]
        best = np.argmin(distances.sum(axis=2), axis=1)
        chosen[:, k] = candidates[np.arange(ATTEMPTS), best]
        nearer = distances[np.arange(ATTEMPTS), best]
        nearest[nearer < closest] = k
        closest = nearer
    return features[chosen], nearest


def _distances_to_rows(features, indices, product, norms):
    """Squared distance of every row to the rows at `indices`, int [M]: float32 [M, N]."""
    return np.maximum(norms[None] + norms[indices][:, None] - 2 * product(features[indices]).T, 0)


def _nearest(centres, product):
    """The nearest centre of every row in each attempt.

    Returns:
        (int [A, N]; float32 [A, N], the squared distance to it, less the row's squared norm).
    """
    num_attempts, num_centres, size = centres.shape
    flat = centres.reshape(-1, size)
    distances = np.einsum("kd,kd->k", flat, flat) - 2 * product(flat)  # [N, A K]; |x|^2 is the same for all centres
    distances = distances.reshape(-1, num_attempts, num_centres)
    nearest = distances.argmin(axis=2)
    return nearest.T, np.take_along_axis(distances, nearest[:, :, None], axis=2)[:, :, 0].T


def _move(features, indices, assigned, nearest, sums, counts):
    """Moves the rows at `indices` to their nearest clusters, in `assigned` [N], `sums` [K, D] and `counts` [K]."""
    if not len(indices):
        return
    old, new = assigned[indices], nearest[indices]
    had = old >= 0
    # A matrix: +1 where a cluster gets a row, -1 where it loses one. Its product with the rows is the change of sums.
    signs = np.concatenate([np.ones(len(indices)), -np.ones(had.sum())]).astype(np.float32)
    moved = np.concatenate([indices, indices[had]])
    change = sparse.csr_matrix((signs, (np.concatenate([new, old[had]]), moved)), shape=(len(sums), len(features)))
    sums += change @ features
    counts += np.bincount(new, minlength=len(counts)) - np.bincount(old[had], minlength=len(counts))
    assigned[indices] = new


def _fill_empty(features, centres, assigned, sums, counts):
    """Gives every empty cluster that row of the largest cluster that is farthest from its centre, in place."""
    for k in np.flatnonzero(counts == 0):
        largest = int(np.argmax(counts))
        members = np.flatnonzero(assigned == largest)
        index = members[np.square(features[members] - centres[largest]).sum(axis=1).argmax()]
        sums[largest] -= features[index]
        sums[k] = features[index]
        counts[largest] -= 1
        counts[k] = 1
        assigned[index] = k
