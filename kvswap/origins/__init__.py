"""Origins: places that keep artifacts as files - a directory, a web server, a bucket - and are trusted with nothing.

`port` says what a place of files must do, `files`, `web` and `s3` do it; `index` is how an artifact is found there
without a server; `origin` is all of it together, as a node uses it.
"""
