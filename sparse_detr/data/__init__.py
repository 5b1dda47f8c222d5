"""Reading, augmenting and checking data."""
