"""Adapting an encoder of texts to the events of a model.

    the log ── log_events ─▶ events ── pairs ─▶ (history, next item)
                                                      │
    texts of items ── augment ─▶ encoder with LoRA ◀── train ─▶ adapter, vectors of all items

The encoder is a pretrained language model, whose weights stay. LoRA adds a product of two thin
matrices to each of its linear layers (Hu et al., ICLR 2022), and only these learn. A user's
history is the mean of the vectors of the items that the user had before. Its cosine with the vector
of the next item shall exceed those with the other items of the batch (in-batch negatives, Yi et
al., RecSys 2019).

Training is no function of the log: its bits depend on the machine. So the vectors are what is
logged, with the hash of the adapter that made them. A replay needs no adapter.
"""
