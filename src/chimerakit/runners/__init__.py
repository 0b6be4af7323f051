"""What maps jobs: threads here; other engines beside it. A runner takes any job function and knows nothing of merging."""
