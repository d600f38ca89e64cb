"""Settings that change while a population trains, by Ray Tune (the extra ``tune``)."""
