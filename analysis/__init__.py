"""From recorded runs to claims: reads MLflow, compares on the same folds, prints tables with intervals."""
