"""The offline converter: VOC folders to shards. Imports from `input`, never the other way round."""
