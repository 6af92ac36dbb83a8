"""A masks table as one HTML page: `stable_sam.report.write.write_report`."""
