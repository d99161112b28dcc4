"""The command line: parse -> call -> print. One small file per group of verbs; heavy imports happen inside verbs."""
