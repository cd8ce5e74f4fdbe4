"""A worker of `ea serve`: owns one device, keeps models on it, and makes one job after the other.

    python -m ea_runtime.serve.worker --state FOLDER --name cuda0 --device cuda:0

`loop.py` takes jobs, `making_job.py` makes one, `models.py` and `loras.py` keep what was loaded, `preview.py` and
`products.py` make the pictures that go with a video. `link.py` is how it meets the store.
"""
