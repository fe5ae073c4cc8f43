"""One prompt, two answers side by side: of the original model and of the adapted one."""
