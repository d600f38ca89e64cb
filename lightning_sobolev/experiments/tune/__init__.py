"""Population based training: settings that change while a population trains (extra ``tune``)."""
