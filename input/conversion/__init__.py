"""The offline converter: VOC, COCO and YOLO to shards. Imports from `input`, never the other way round."""
