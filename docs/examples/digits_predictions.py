"""Writes the example files of the README: probabilities of a scikit-learn model on held-out digits.

python docs/examples/digits_predictions.py        # val.csv and test.csv beside this file
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

images, labels = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
order = rng.permutation(len(labels))
images = images + rng.normal(0, 5, images.shape)  # noise, so that the model errs
train, val, test = np.split(order, [597, 1197])
model = LogisticRegression(C=1.0, max_iter=5000).fit(images[train], labels[train])
head = ",".join([*(f"p_{digit}" for digit in model.classes_), "label"])
for name, rows in (("val", val), ("test", test)):
    probabilities = model.predict_proba(images[rows])
    lines = [",".join([*(f"{p:.6f}" for p in probabilities[i]), str(labels[rows[i]])]) for i in range(len(rows))]
    Path(__file__).with_name(f"{name}.csv").write_text("\n".join([head, *lines]) + "\n")
