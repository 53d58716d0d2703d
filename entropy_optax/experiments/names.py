"""What the command line calls networks and rows of the paper's table."""

from typing import Literal, get_args

ModelName = Literal[
    "mnistfc",
    "mnistfc_torch",
    "mnistfc_bn",
    "mlp",
    "mlp_small",
    "mnistfc_small",
    "lenet_small",
    "lenet",
    "allcnn",
    "char_lstm",
    "char_lstm_small",
    "word_lstm",
]
# In the order of the paper's table.
RowName = Literal[
    "mnistfc",
    "mnistfc_torch",
    "mnistfc_bn",
    "lenet",
    "allcnn",
    "word_lstm",
    "char_lstm",
]
ROWS = get_args(RowName)
