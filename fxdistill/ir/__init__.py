"""The nouns of the compiler: graphs, programs, couplings, survivors; what a pass is."""
