"""Convert logs that do not fit in memory to packed training rows on disk, and read them: `convert`
holds the steps, `build` runs them in processes of one machine, `beam` on a cluster; `reader` serves
the rows to training."""
