"""The operator as torch sees it: schemas, kernels, derivatives, dispatch, shards."""
