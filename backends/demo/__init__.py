"""The trained checkpoint `demo`, and everything it was made with: corpus, network, optimisers, training."""
