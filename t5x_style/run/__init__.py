"""One file for each verb, with a gin root function of the same name."""
