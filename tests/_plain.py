"""A perceptron without any of the defaults' help, which closed forms can follow."""

PLAIN = {
    "hidden_layer_sizes": (128, 128),
    "normalization": None,
    "dropout": 0.0,
    "input_scale": False,
    "temperature": 1.0,
    "learning_rate": 1e-3,
    "optimizer": "adam",
    "betas": (0.9, 0.999),
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "max_epochs": 50,
    "batch_size": 128,
}
