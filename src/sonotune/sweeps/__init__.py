"""Many runs that answer one question: the standard ablation, its schedule, its trials and what they say."""
