"""What calls return, as plain values: scores, judgements, contests; and tables made of them."""
