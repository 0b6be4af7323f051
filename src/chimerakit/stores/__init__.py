"""Where bytes lie: sizes, byte ranges, writes. Nothing here knows a format. Local files now; remote stores later."""
