"""A whole multi-site study on one machine, over the code that hospitals run."""
