"""Methods x fractions x settings x seeds: select, train, evaluate, and the paper's tables of what came out."""
