"""Reading, augmenting and checking data; `sample` needs no Detectron2, the rest does."""
