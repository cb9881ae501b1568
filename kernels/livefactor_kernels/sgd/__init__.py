"""Rule SGD: gradient steps on squared, logistic or BPR loss. Its semantics.

A record is cut into micro-batches of B = `micro_batch` events, the last one short. All of a micro-batch's gradients are
taken from the state at its start: x the user's factors, y an item's, s = ((mu + b_u) + b_i) + x . y with the global mean mu
(squared loss; else 0) before the micro-batch.

Occurrences, event by event, slot 0 the positive and then its negatives as drawn (`update.draw_negatives`); all errors are
limited to +-`error_max`, w is the event's weight and v its value:
    squared   e = w (s - v)
    logistic  e = w (sigmoid(s) - v), for a negative v = 0; a positive with v = 0 has none
              both add (e y) + (l2 x) to the user, (e x) + (l2 y) to the item, e + (bias_l2 b) to their biases
    BPR       (Rendle et al., UAI 2009) for each negative n of positive p: e = -w sigmoid(s_n - s_p); adds (e (y_p - y_n)) + (l2 x)
              to the user, (e x) + (l2 y_p) to p, (-e x) + (l2 y_n) to n; to the items' biases e and -e, + (bias_l2 b)

Where the spec's `regularization` has them:
    l2_frequency p    a row's l2 and bias_l2 are divided by n**p (sqrt(n), n), n = max(1, its events before this record)
                      (frequency-scaled: Rendle et al., arXiv:2110.14037)
    dropout p         an event is told without the columns whose random 32 bits (`random.dropout_word`, `column_word`) are not
                      below (1 - p) 2**32: d is 0 there and 1 / (1 - p) elsewhere. Its scores are of x . (d y), and it adds
                      (e (d y)), (e (d x)) and (e (d (y_p - y_n))) in the place of what stands above; L2 terms as above
                      (Srivastava et al., JMLR 15, 2014). Scores that are asked for know no dropout.

A row's gradient is the sum of its occurrences in order of (event, slot): chunks of 32 left to right, then the chunks
(`sums.chunked_sum`), times min(1, h / events that name the row) with h = `hot_row_events`. Then the row steps once
(`optimizers/__init__.py`), and with squared loss the micro-batch's values join the mean.
"""
