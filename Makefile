# A thin alias of run.py, for those who have make.
.PHONY: demo up test check setup
demo up test check setup:
	@python3 run.py $@
