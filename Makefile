# A thin alias of run.py, for those who have make.
.PHONY: demo up bench test check setup
demo up bench test check setup:
	@python3 run.py $@
