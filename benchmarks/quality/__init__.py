"""How well what livefactor learns ranks and predicts, beside full retrains: the judge of update rules."""
