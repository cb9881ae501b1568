"""The semantics of rule SGD: gradient steps on squared, logistic or BPR loss.

A record is divided into micro-batches of B = `micro_batch` events. The last one may have fewer. All
gradients of a micro-batch use the state at its start: x are the user's factors, y an item's
factors, and s = ((mu + b_u) + b_i) + x . y is the score. With squared loss mu is the global mean
before the micro-batch, else 0.

The occurrences of an event are its slots: slot 0 is the positive, and the next slots are its
negatives in the order of the draws (`update.draw_negatives`). All errors are clamped to
+-`error_max`. The event has weight w and value v.

    squared   e = w (s - v)
    logistic  e = w (sigmoid(s) - v), with v = 0 for a negative. An event with v = 0 has no
              negatives.
              Both losses add (e y) + (l2 x) to the user, (e x) + (l2 y) to the item, and
              e + (bias_l2 b) to their biases.
    BPR       (Rendle et al., UAI 2009) for each negative n of the positive p:
              e = -w sigmoid(s_n - s_p). It adds (e (y_p - y_n)) + (l2 x) to the user,
              (e x) + (l2 y_p) to p, and (-e x) + (l2 y_n) to n. It adds e + (bias_l2 b) to
              p's bias and -e + (bias_l2 b) to n's bias. A user's bias has no gradient.

The spec's `regularization` has two parts that change an occurrence:

    l2_frequency p    A row's l2 and bias_l2 are divided by n**p, which is sqrt(n) or n.
                      n = max(1, the row's events before this record). (Frequency-scaled:
                      Rendle et al., arXiv:2110.14037.)
    dropout p         An event drops the columns whose random 32 bits (`random.dropout_word`,
                      `column_word`) are not below (1 - p) 2**32. d is 0 in these columns and
                      1 / (1 - p) in the others. Scores use x . (d y). The event adds
                      (e (d y)), (e (d x)) and (e (d (y_p - y_n))) in place of the terms
                      above. L2 terms are the same. (Srivastava et al., JMLR 15, 2014.)
                      Scores for clients have no dropout.

The gradient of a row is the sum of its occurrences in the order of (event, slot). Chunks of 32 are
summed from left to right, and then the chunks (`sums.chunked_sum`). The gradient is multiplied by
min(1, h / number of events with the row), where h is `hot_row_events`. Then the row takes one step
(`optimizers/__init__.py`). With squared loss the values of the micro-batch are added to the mean
afterwards.
"""
