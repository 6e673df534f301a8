"""What `bench_codec.py` is made of: real keys and values (`samples`), others' codecs (`anchors`), what a codec
pays for each tensor (`bits`), and the sections themselves (`sections`)."""
