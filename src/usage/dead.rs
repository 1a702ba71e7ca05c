//! Dead letters: records that could not be delivered, in a file from which they can be replayed.
